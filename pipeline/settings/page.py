"""Write docs/settings.md from the schema: ``python -m pipeline.settings.page``.

A test compares the file with `render()`, so that the page cannot say what the code no longer does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import components
from pipeline.machine import workspace
from pipeline.settings import reader
from pipeline.settings.base import Section
from pipeline.settings.data import DatasetSplit
from pipeline.settings.parse import recipes
from pipeline.settings.schema import Settings, fields

PAGE = workspace.SOURCE / "docs" / "settings.md"

_INTRODUCTION = """\
# Settings

<!-- Written by `python -m pipeline.settings.page`. Change the texts in pipeline/settings/, then run that again. -->

Every setting of a run. A later source wins over an earlier one:

1. the default in the tables below,
2. `params.yaml`,
3. a recipe: `--recipe demo`, or the recipe of the trigger form,
4. single settings: `--set train.fit.epochs=3` (values are YAML 1.2), or the other fields of the form.

An unknown key, another type, a value out of range and settings that contradict each other are refused before anything
runs. `flyweight check --recipe demo --set train.fit.epochs=3` says so in seconds.

A *component* is a name with its arguments beside it: `{name: kd, temperature: 4.0}`. One argument is changed alone with
`--set distill.loss.temperature=2`. A new name drops the arguments of the old one.
[Bring your own](bring-your-own.md) says how to add a component, [Compression and export](compression.md) which pruner and
quantizer to take.

`datasets` cannot be overlaid: DVC pins the bytes that it describes. Edit `params.yaml` and run `dvc repro`.
"""


def render() -> str:
    """Return the whole page."""
    sections = [
        (name, info) for name, info in Settings.model_fields.items() if isinstance(info.annotation, type)
        and issubclass(info.annotation, Section)
    ]  # fmt: skip
    parts = [_INTRODUCTION, *_recipes(), "## General\n", *_table([("seed", _schema(Settings, "seed"))])]
    for name, info in sections:
        parts += [f"## {name}\n", f"{info.description}\n", *_table(list(_leaves(info.annotation, f"{name}.")))]
    parts += ["## datasets\n", f"How each data set is split. There are: {_names('datasets')}.\n"]
    parts += _table([(f"datasets.<name>.{key}", _schema(DatasetSplit, key)) for key in DatasetSplit.model_fields])
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


def _schema(section: type[Any], name: str) -> dict[str, Any]:
    return section.model_json_schema()["properties"][name] | {"kind": _kind(section, name)}


def _leaves(section: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted key, JSON schema) of every leaf in `section`."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _leaves(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _schema(section, name)


def _kind(section: type[Any], name: str) -> str:
    """The kind of component that this field takes; empty for any other field."""
    kinds = {setting: kind for setting, kind, _ in Settings.model_construct().components()}
    return kinds.get(f"{section.__name__.lower()}.{name}", "")


def _table(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    lines = ["| setting | allowed | default | what it does |", "|---|---|---|---|"]
    for key, schema in rows:
        allowed = f"a component: {_names(schema['kind'])}, or your own" if schema["kind"] else _allowed(schema)
        lines.append(f"| `{key}` | {allowed} | {_default(key, schema)} | {schema['description']} |")
    return [*lines, ""]


def _names(kind: str) -> str:
    return ", ".join(f"`{name}`" for name in components.names(kind))


def _allowed(schema: Mapping[str, Any]) -> str:
    """Type and bounds in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(branch) for branch in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:  # an item of a list; every other component is known by its kind
        return "a component, `{name: ..., ...}`"
    if schema["type"] == "array":
        return f"list of: {_allowed(schema['items'])}"
    names = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "string": "text",
        "null": "empty",
    }
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in signs.items() if bound in schema]
    pattern = [f"like `{schema['pattern']}`"] if "pattern" in schema else []
    return " ".join([names[schema["type"]], ", ".join(bounds + pattern)]).strip()


def _default(key: str, schema: Mapping[str, Any]) -> str:
    """The value that holds where nothing else is said: of the whole tree, since a section may set its parts again."""
    value: Any = Settings.model_construct().model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _code(schema["default"]) if "default" in schema else "none: must be given"
        value = value[part]
    return _code(value)


def _code(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return f"`{{{', '.join(f'{key}: {_plain(item)}' for key, item in value.items())}}}`"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _recipes() -> list[str]:
    """Each recipe's command (line 1 of its file), and what the recipes set, side by side."""
    lines = ["## Recipes", "", "A file in `recipes/` is one whole use. What it does not set keeps its default.", ""]
    trees: dict[str, dict[str, Any]] = {}
    for name in recipes():
        text = (workspace.root() / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        command, _, what = text.partition("\n")[0].lstrip("# ").partition("  ")
        lines.append(f"- **{name}**: `{command.strip()}`. {what.strip()}")
        trees[name] = dict(_flat(reader.read(text, name)))
    lines += ["", f"| setting | {' | '.join(trees)} |", "|---" * (len(trees) + 1) + "|"]
    for key in (key for key, _ in fields() if any(key in tree for tree in trees.values())):
        values = [_code(tree[key]) if key in tree else "" for tree in trees.values()]
        lines.append(f"| `{key}` | {' | '.join(values)} |")
    return [*lines, ""]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value); a component stays whole."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and "name" not in value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    main()
