"""Change single settings in a YAML file and leave every other byte, comments and layout too, as it is.

ruamel.yaml says where each value stands, and that much of the text is replaced. Its own writer is not used: it drops
comments inside a flow mapping of several lines and those of a file without values, and lays out untouched lines again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node

from pipeline.errors import SettingsError
from pipeline.settings import reader


def update(path: Path, section: str, values: Mapping[str, int]) -> None:
    """Write `values` into `section` of the YAML file at `path`, in one step. Raises `SettingsError`."""
    try:
        text = path.read_bytes().decode("utf-8")  # line breaks as they are
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    expected = reader.read(text, str(path)) or {}
    changed = with_values(text, section, values)
    expected[section] = {**(expected.get(section) or {}), **values}
    if not _says(changed, expected):
        raise SettingsError(
            f"{path} is written in a way that cannot be changed safely: put this into it yourself: "
            f"{section}: {_flow(values)}"
        )
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(changed)
    Path(name).chmod(path.stat().st_mode)
    Path(name).replace(path)


def _says(text: str, expected: Any) -> bool:
    try:
        return bool(reader.read(text, "the text") == expected)
    except SettingsError:
        return False


def with_values(text: str, section: str, values: Mapping[str, int]) -> str:
    """Return YAML `text` with `values` in its `section`, which is made at the end where there is none."""
    root = reader.compose(text, "the text")
    found = _value(root, section)
    if found is None:
        return f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{section}: {_flow(values)}\n"
    if not isinstance(found, MappingNode) or not found.value:
        return _spliced(text, [(found.start_mark.index, found.end_mark.index, _flow(values))])
    edits, fresh = [], dict[str, int]()
    for key, value in values.items():
        node = _value(found, key)
        if node is None:
            fresh[key] = value
        else:
            edits.append((node.start_mark.index, node.end_mark.index, str(value)))
    if fresh:
        edits.append(_insertion(text, found, fresh))
    return _spliced(text, edits)


def _insertion(text: str, section: MappingNode, values: Mapping[str, int]) -> tuple[int, int, str]:
    """Return the edit that puts new keys first into a section, in its own style."""
    first = section.value[0][0].start_mark
    if section.flow_style:
        return first.index, first.index, "".join(f"{key}: {value}, " for key, value in values.items())
    indent = "\n" + " " * first.column
    return first.index, first.index, "".join(f"{key}: {value}{indent}" for key, value in values.items())


def _value(node: Node | None, key: str) -> Node | None:
    """Return the value of `key` in a mapping."""
    if not isinstance(node, MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _flow(values: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def _spliced(text: str, edits: list[tuple[int, int, str]]) -> str:
    """Return `text` with each (start, end, new) done; they do not overlap."""
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text
