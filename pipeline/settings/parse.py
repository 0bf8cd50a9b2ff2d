"""How settings are read: params.yaml, overlaid by a recipe, overlaid by single settings.

`load()` overlays, later wins: `params.yaml`, `recipes/<recipe>.yaml`, then single settings such as ``train.fit.epochs=3``.
It refuses unknown keys with the near miss, and values of another type: neither "3" nor true is a number of epochs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import SettingsError, near_miss
from pipeline.machine import workspace
from pipeline.settings import reader
from pipeline.settings.explain import sentences
from pipeline.settings.schema import Settings


def recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in (workspace.root() / "recipes").glob("*.yaml"))


def load(recipe: str | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings: params.yaml, overlaid by `recipe`, then by `overrides` (dotted key -> value).

    Raises `SettingsError` that names every problem at once.
    """
    tree = _overlay(_defaults(), _read_yaml(workspace.root() / "params.yaml"))
    if recipe:
        if recipe not in recipes():
            raise SettingsError(
                f"there is no recipe {recipe!r}; recipes/ has: {', '.join(recipes())}{near_miss(recipe, recipes())}"
            )
        tree = _overlay(
            tree, _pinned(_read_yaml(workspace.root() / "recipes" / f"{recipe}.yaml"), f"recipes/{recipe}.yaml")
        )
    above: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        above = _overlay(above, _pinned(branch, key))
    return parse(_overlay(tree, above))


def parse(tree: Mapping[str, Any]) -> Settings:
    """Return `tree` as settings. Raises `SettingsError` that names every problem at once."""
    try:  # as JSON, because there strict means "no conversions" and yet a list may stand for a tuple
        return Settings.model_validate_json(json.dumps(tree, default=str), strict=True)
    except TypeError as error:  # of json: YAML takes lists and dates as keys
        raise SettingsError(f"the name of a setting must be text: {error}") from error
    except ValidationError as error:
        raise SettingsError(
            "\n".join(
                [
                    "the settings do not hold (docs/settings.md lists them all):",
                    *(f"  - {text}" for text in sentences(error)),
                ]
            )
        ) from error


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Turn ``("train.fit.epochs=3",)`` into ``{"train.fit.epochs": 3}``; values are YAML. Raises `SettingsError`."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set takes key=value, for example train.fit.epochs=3; got {pair!r}")
        overrides[key.strip()] = reader.read(value, f"--set {pair}: the value")
    return overrides


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"cannot read {path}: {error.strerror}; run from the repository or set FLYWEIGHT_ROOT"
        ) from error
    tree = reader.read(text, str(path))
    if tree is not None and not isinstance(tree, dict):
        raise SettingsError(f"{path} must hold sections of settings, not a {type(tree).__name__}")
    return tree or {}


def _pinned(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """Refuse an overlay of what DVC pins: the bytes on disk would no longer be what the settings say."""
    if "datasets" in tree:
        raise SettingsError(f"{source}: 'datasets' is pinned by dvc.lock; edit params.yaml and run `dvc repro` instead")
    return tree


def _defaults() -> dict[str, Any]:
    """The schema's own defaults as a tree, so that one argument of a default component can be changed alone."""
    return Settings.model_construct().model_dump(mode="json")


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` into `below`. A component that changes its name drops the arguments of the old one."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _renames(old, value):
            merged[key] = _overlay(old, value)
        else:
            merged[key] = value
    return merged


def _renames(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in old and "name" in new and old["name"] != new["name"]
