"""Read YAML as YAML 1.2 does, so that a setting means what it looks like.

Only ``true`` and ``false`` are booleans, ``1e-3`` is a number, and no key may stand twice. DVC reads params.yaml with the
same library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from pipeline.errors import SettingsError


def read(text: str, source: str) -> Any:
    """Return the one document in `text` as plain Python values.

    Raises `SettingsError` that says where in `source` (a file's name, or other words) what is wrong.
    """
    with _explained(source):
        return _yaml().load(text)


def compose(text: str, source: str) -> Node | None:
    """Return the one document in `text` as nodes that know where they stand. Raises `SettingsError` as `read` does."""
    with _explained(source):
        return _yaml().compose(text)


def _yaml() -> YAML:
    """One for each text: it remembers what the text before said about its version."""
    return YAML(typ="safe", pure=True)  # pure: libyaml reads YAML 1.1


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except MarkedYAMLError as error:
        began = f" ({error.context}{_place(', from', error.context_mark)})" if error.context else ""
        where = _place("", error.problem_mark or error.context_mark).lstrip()
        raise SettingsError(f"{source} is not YAML: {where}: {error.problem}{began}") from error
    except (YAMLError, ValueError) as error:  # ValueError: a date in a thirteenth month
        raise SettingsError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def _place(word: str, mark: Any) -> str:
    return f"{word} line {mark.line + 1}, column {mark.column + 1}" if mark else ""
