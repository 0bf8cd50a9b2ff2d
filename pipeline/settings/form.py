"""The settings as Airflow's trigger form: plain data for `airflow.sdk.Param`, and the way back to command line arguments.

Nothing of Airflow is imported. What the user leaves alone is None and means "as the recipe says", so a run's configuration
holds only what was changed. The types are those that the form of Airflow 3.3 can show *and* empty again; see
docs/decisions/airflow-form.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.machine import workspace
from pipeline.settings import reader
from pipeline.settings.parse import recipes
from pipeline.settings.schema import Settings, fields

RECIPE = "recipe"
FORCE = "force"
DEFAULT_RECIPE = "demo"
_PINNED = "datasets"  # what dvc.lock pins cannot be changed by a run


def params() -> dict[str, dict[str, Any]]:
    """Return, by name, the keyword arguments of every `airflow.sdk.Param`: recipe, force, then a dotted key a setting."""
    schema = Settings.model_json_schema()
    trees = dict(_trees())
    leaves = [(key, info.description or "") for key, info in fields() if key != _PINNED]
    leaves.sort(key=lambda leaf: ("." in leaf[0], not leaf[0].startswith("budget.")))
    form: dict[str, dict[str, Any]] = {
        RECIPE: {
            "default": DEFAULT_RECIPE,
            "type": "string",
            "enum": recipes(),
            "title": RECIPE,
            "description_md": "Where every setting that is left empty below comes from: a file in `recipes/`.",
        },
        FORCE: {
            "default": False,
            "type": "boolean",
            "title": FORCE,
            "description_md": "Run every stage, even where a finished run had the same settings, inputs and code.",
        },
    }
    for key, help_text in leaves:
        form[key] = {
            "default": None,
            "title": key,
            "description_md": f"{help_text}\n\n{_empty(key, trees)}",
            **_type(_leaf(schema, key)),
            **_section(key),
        }
    return form


def settings_arguments(conf: Mapping[str, Any]) -> list[str]:
    """Return ``--recipe`` and ``--set`` for a DAG run's `conf`. Unknown keys go along: the schema refuses them by name."""
    arguments = ["--recipe", str(conf.get(RECIPE) or DEFAULT_RECIPE)]
    for key, value in conf.items():
        if key not in {RECIPE, FORCE} and value is not None:
            # Text goes as it was typed: a widget that takes "auto" or a number gives both as text, and YAML tells them apart.
            arguments += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return arguments


def _type(leaf: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of a setting -> what the form shows it as: always with null, always a widget that can be emptied."""
    branches = [branch for branch in leaf.get("anyOf", [leaf]) if branch.get("type") != "null"]
    words = [word for branch in branches for word in branch.get("enum", [branch["const"]] if "const" in branch else [])]
    bounds = {key: branches[0][key] for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "pattern")
              if key in branches[0]}  # fmt: skip
    kind = branches[0].get("type", "object")
    if len(branches) > 1:  # a word such as 'auto', or a number
        other = next(branch["type"] for branch in branches if "const" not in branch and "enum" not in branch)
        return {"type": ["string", other, "null"], "examples": words}
    if words:
        return {"type": ["string", "null"], "enum": [None, *words], "values_display": _display(words)}
    if kind == "boolean":  # a switch cannot say "neither"
        return {"type": ["string", "boolean", "null"], "examples": ["true", "false"], "pattern": "^(true|false)$"}
    if kind == "array":
        items = {"type": "object"} if "$ref" in leaf["items"] else leaf["items"]
        choices = {"examples": items["enum"]} if "enum" in items else {}
        return {"type": ["array", "null"], "items": items, **choices}
    return {"type": [kind, "null"], **bounds}


def _display(words: list[str]) -> dict[str, str]:
    return {"None": "as the recipe says", **{word: word for word in words}}


def _section(key: str) -> dict[str, str]:
    """The top-level section of `key` with its help; what has none stands in the form's first, open part."""
    section, dot, _ = key.partition(".")
    help_text = (Settings.model_fields[section].description or "").replace("`", "")
    return {"section": f"{section}: {help_text}"} if dot else {}


def _leaf(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The part of the settings' JSON schema that describes `key`."""
    node = schema
    for part in key.split("."):
        node = node["properties"][part]
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _trees() -> Iterator[tuple[str, Any]]:
    """Yield (where from, settings as a tree), unchecked: a wrong recipe must stop a run in `check`, not hide the DAG."""
    yield "schema", Settings.model_construct().model_dump(mode="json")
    files = {"params.yaml": "params.yaml"} | {name: f"recipes/{name}.yaml" for name in recipes()}
    for name, file in files.items():
        yield name, reader.read((workspace.root() / file).read_text(encoding="utf-8"), file)


def _empty(key: str, trees: Mapping[str, Any]) -> str:
    """What an empty field means: the default, and each recipe that says otherwise."""
    values = {name: value for name, tree in trees.items() if (value := _at(tree, key)) is not None}
    default = values.pop("params.yaml", values.pop("schema", None))
    others = [f"{name}: {json.dumps(values[name])}" for name in recipes() if values.get(name, default) != default]
    return f"Left empty: {json.dumps(default)}" + (f" ({', '.join(others)})" if others else "") + "."


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
