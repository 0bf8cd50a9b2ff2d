"""Find a component by name: the file name is the key.

`find("losses", "kd")` imports kd.py from the package of losses and returns the class or function that its `COMPONENT` names.
`find("losses", "mypackage.mylosses:Focal")` reaches a user's own code. To add a component, add one file.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from pipeline.errors import SettingsError, near_miss

KINDS = {
    "datasets": "data.datasets",
    "models": "models.architectures",
    "losses": "training.losses",
    "pruners": "compression.pruning.pruners",
    "quantizers": "compression.quantization.quantizers",
}
"""Kind of component -> its package below `pipeline`."""
_PACKAGE = Path(__file__).parent


def names(kind: str) -> list[str]:
    """Return the names of all built-in components of `kind`, without importing them."""
    if kind not in KINDS:
        raise SettingsError(f"unknown kind of component {kind!r}; kinds: {', '.join(KINDS)}{near_miss(kind, KINDS)}")
    return sorted(
        path.stem for path in (_PACKAGE / KINDS[kind].replace(".", "/")).glob("*.py") if not path.stem.startswith("_")
    )


def check_name(kind: str, name: str) -> None:
    """Raise `SettingsError` unless `name` is a built-in of `kind` or has the form ``package.module:Name``. Imports nothing."""
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return
    known = names(kind)
    if name not in known:
        raise SettingsError(
            f"there is no {name!r} in {kind}; there are: {', '.join(known)}{near_miss(name, known)} "
            f"(your own is written as 'package.module:Name')"
        )


def find(kind: str, name: str) -> Callable[..., Any]:
    """Return the component's class or function. Raises `SettingsError` where there is none."""
    check_name(kind, name)
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name if attribute else f"pipeline.{KINDS[kind]}.{name}")
        return getattr(module, attribute or "COMPONENT")
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"{kind}: cannot load {name!r}: {error}. Is its package installed beside Flyweight?"
        ) from error


def build(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    """Return ``find(kind, name)(**arguments)``; arguments that do not fit raise `SettingsError` naming each of them."""
    component = find(kind, name)
    hints = typing.get_type_hints(component.__init__ if inspect.isclass(component) else component, include_extras=True)
    parameters = inspect.signature(component).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in arguments:
        if key not in known:
            raise SettingsError(
                f"{kind}.{name} has no setting {key!r}; it has: {', '.join(known) or 'none'}{near_miss(key, known)}"
            )
    fields: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default)
        for p in parameters
        if p.name in known
    }
    schema = create_model(f"{kind}.{name}", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    try:
        values = schema.model_validate(dict(arguments))
        return component(**{key: getattr(values, key) for key in known})
    except ValidationError as error:
        raise SettingsError(f"{kind}.{name}: {'; '.join(map(_explain, error.errors()))}") from error
    except ValueError as error:
        raise SettingsError(f"{kind}.{name}: {error}") from error


def _explain(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    return (
        f"{where} is missing" if problem["type"] == "missing" else f"{where} is {problem['input']!r}: {problem['msg']}"
    )
