"""Find a component by name: the file name is the key.

`find("losses", "kd")` imports kd.py from the package of losses and returns the class or function that its `COMPONENT` names.
`find("losses", "mypackage.mylosses:Focal")` reaches a user's own code. To add a component, add one file.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
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
GIVEN = {"models": {"in_channels": 1, "classes": 10}}
"""Kind -> arguments that the data set gives, not the settings; stand-ins for as long as only settings are checked."""
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


def check(kind: str, name: str, arguments: Mapping[str, Any], setting: str = "") -> dict[str, Any]:
    """Return every argument of a component, defaults included, without making it.

    Types are as strict as those of settings: neither "3" nor true is a number, inf and nan are none either; an integer is a
    number, and a list may stand for a tuple. What has no annotation takes any plain value.

    Args:
        kind: one of `KINDS`.
        name: a built-in, or ``package.module:Name``.
        arguments: what the settings hold beside the name.
        setting: the dotted setting that names the component, for the error.

    Raises `SettingsError` naming each argument that does not fit.
    """
    component = find(kind, name)
    hints = typing.get_type_hints(component.__init__ if inspect.isclass(component) else component, include_extras=True)
    parameters = inspect.signature(component).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in arguments:
        if key not in known:
            raise SettingsError(
                f"{setting and f'{setting}.{key}: '}{kind}.{name} has no setting {key!r}; "
                f"it has: {', '.join(known) or 'none'}{near_miss(key, known)}"
            )
    fields: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default)
        for p in parameters
        if p.name in known
    }
    schema = create_model(f"{kind}.{name}", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    problems = {place: f"{place} is {value}: Input should be a finite number" for place, value in _endless(arguments)}
    try:  # as JSON, because there strict means "no conversions" and yet a list may stand for a tuple
        values = schema.model_validate_json(json.dumps(dict(arguments), default=str), strict=True)
        problems |= {
            place: f"{place} is {value}: Input should be a number" for place, value in _lost(arguments, values)
        }
    except ValidationError as error:
        problems = _explain(error, arguments) | problems
    if problems:
        before = f"{setting}." if setting else ""
        sentences = "; ".join(f"{before}{sentence}" for sentence in problems.values())
        raise SettingsError(sentences if setting else f"{kind}.{name}: {sentences}")
    return {key: getattr(values, key) for key in known}


def build(kind: str, name: str, arguments: Mapping[str, Any], setting: str = "") -> Any:
    """Return ``find(kind, name)(**arguments)``. Raises `SettingsError` as `check` does, or with what the component says."""
    values = check(kind, name, arguments, setting)
    try:
        return find(kind, name)(**values)
    except ValueError as error:
        raise SettingsError(f"{setting or f'{kind}.{name}'}: {error}") from error


def _endless(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield (dotted place, number) for every inf and nan in plain data."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    inside = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, part in inside:
        yield from _endless(part, f"{place}.{key}" if place else str(key))


def _lost(value: Any, made: Any, place: str = "") -> Iterator[tuple[str, bool]]:
    """Yield (dotted place, value) for every true and false that became a number: pydantic takes true for ``Literal[1]``."""
    if isinstance(value, bool) and not isinstance(made, bool) and isinstance(made, int):
        yield place, value
    for key, part in value.items() if isinstance(value, Mapping) else ():
        inside = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
        yield from _lost(part, inside, f"{place}.{key}" if place else str(key))
    if isinstance(value, list | tuple) and isinstance(made, list | tuple):
        for number, (part, inside) in enumerate(zip(value, made, strict=True)):
            yield from _lost(part, inside, f"{place}.{number}")


def _explain(error: ValidationError, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return one sentence per argument that does not fit, by its dotted place."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        place, missing = _place(problem["loc"], arguments), problem["type"] == "missing"
        if place in sentences:  # the branches of a union each complain about the same value
            sentences[place] += f", or: {problem['msg']}"
        else:
            sentences[place] = (
                f"{place} is missing" if missing else f"{place} is {problem['input']!r}: {problem['msg']}"
            )
    return sentences


def _place(location: tuple[int | str, ...], value: Any) -> str:
    """`location` without the names of union branches that pydantic puts between and behind real keys."""
    path = []
    for part in location:
        if (isinstance(value, Mapping) and part in value) or (
            isinstance(value, list | tuple) and isinstance(part, int)
        ):
            value = value[part]
            path.append(str(part))
        elif isinstance(value, Mapping) and part == location[-1] and not str(part).startswith("["):  # what is missing
            path.append(str(part))
    return ".".join(path)
