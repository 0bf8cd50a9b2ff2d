"""What a stage's result depends on, as one hash: artifact reuse asks MLflow for a finished run with the same one.

A fingerprint covers the stage's settings, its inputs, the sources that it needs (`closure`), the versions of the packages
that those import and, for what is measured, the machine. ``python -m pipeline.tracking.fingerprint`` prints them, and
with ``--touch FILE`` which stages a change of that file runs again. docs/decisions/reuse.md says why it is so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click

from pipeline.files import sha256
from pipeline.graph import STAGES, Stage
from pipeline.machine import cpu, gpu, workspace
from pipeline.settings import parse
from pipeline.settings.schema import Settings
from pipeline.tracking import packages
from pipeline.tracking.closure import Closure, closure, module_of
from pipeline.tracking.inputs import Input

NEUTRAL = (
    "pipeline.settings",  # how values are written and refused; the values themselves are in the fingerprint
    "pipeline.components",  # hands those values on: what they make is in the component's own file
    "pipeline.errors",  # what a failure is called; a stage that fails leaves no result
    "pipeline.protocols",  # types alone
    "pipeline.progress",  # tells a person how far a stage is
    "pipeline.report",  # pictures of numbers that are stored beside them
    "pipeline.machine.places",  # where files are, not what is in them
    "pipeline.machine.workspace",
)
"""What cannot change a result, so that a change to it runs nothing again. Keep it short, and say why for each."""

_USERS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def fingerprint(stage: Stage, settings: Settings, inputs: Mapping[str, Input]) -> str:
    """Return the hash of everything that the result of `stage` depends on."""
    return _hash(
        {
            "stage": stage.name,
            "settings": stage_settings(stage, settings),
            "inputs": {name: found.identity for name, found in inputs.items()},
            **code(stage, settings),
            "machine": machine() if measures(stage, settings) else None,
        }
    )


def stage_settings(stage: Stage, settings: Settings) -> dict[str, Any]:
    """Return the sections that `stage` takes, as plain data."""
    tree = settings.model_dump(mode="json")
    return {name: tree[name] for name in stage.settings}


def code(stage: Stage, settings: Settings) -> dict[str, Any]:
    """Return the hash of every source that `stage` needs, and the versions of the packages that those import.

    ``FLYWEIGHT_CODE_VERSION`` takes precedence over the sources of this package, not over the user's.
    """
    needed = needs(stage, settings)
    given = os.environ.get("FLYWEIGHT_CODE_VERSION")
    return {
        "version": given,
        "sources": {
            name: sha256(path)
            for name, path in needed.files.items()
            if not given or name.partition(".")[0] != "pipeline"
        },
        "packages": {name: packages.versions(name) for name in sorted({*needed.packages, *stage.loads})},
    }


def code_version(stage: Stage, settings: Settings) -> str:
    """Return a short hash of `code`, to see in MLflow whether two runs had the same."""
    return _hash(code(stage, settings))[:16]


def needs(stage: Stage, settings: Settings) -> Closure:
    """Return the sources and packages of `stage`: of its function and of the components that its settings name."""
    named = [
        module_of(kind, component.name)
        for setting, kind, component in settings.components()
        if setting.partition(".")[0] in stage.settings
    ]
    of_users = [text.partition(":")[0] for text in _texts(stage_settings(stage, settings)) if _USERS.fullmatch(text)]
    return closure([f"pipeline.stages.{stage.name}", *named, *of_users], NEUTRAL)


def measures(stage: Stage, settings: Settings) -> bool:
    """Whether the result of `stage` holds for this machine alone."""
    return stage.measures or any(
        key in stage.measures_with and value is not None for key, value in _leaves(stage_settings(stage, settings))
    )


@cache
def machine() -> dict[str, Any]:
    """Return what of this machine decides how fast a model answers."""
    found = gpu.find_gpu()
    return {"cpu": cpu.describe().model, "cores": cpu.cores(), "gpu": found and found.name}


def git_commit() -> str:
    """Return the commit that the code was taken from, or an empty string outside git; a note of lineage, in no fingerprint.

    ``FLYWEIGHT_GIT_COMMIT`` says it in images, which hold no git.
    """
    command = ["git", "-C", str(workspace.SOURCE), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FLYWEIGHT_GIT_COMMIT", "")


def touched(settings: Settings, path: Path) -> tuple[list[str], list[str]]:
    """Return the stages whose sources hold the file `path`, and those that follow since an input of theirs is made again."""
    first = [
        stage.name
        for stage in STAGES.values()
        if stage.reusable and any(path.samefile(one) for one in needs(stage, settings).files.values())
    ]
    later: list[str] = []
    for stage in STAGES.values():
        if stage.reusable and stage.name not in first and {*first, *later} & set(stage.inputs.values()):
            later.append(stage.name)
    return first, later


def _texts(tree: Any) -> Iterator[str]:
    return (value for _, value in _leaves(tree) if isinstance(value, str))


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no section or list, with the key that it or its list stands under."""
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(branch, name)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _leaves(branch, key)
    else:
        yield key, tree


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@click.command()
@click.argument("stages", nargs=-1, metavar="[STAGE]...")
@click.option("--recipe", help="Settings of this recipe.")
@click.option("--touch", multiple=True, type=click.Path(exists=True, path_type=Path), help="A file that would change.")
def main(stages: tuple[str, ...], recipe: str | None, touch: tuple[Path, ...]) -> None:
    """Print what the result of each STAGE depends on, or which stages a change of a file runs again."""
    settings = parse.load(recipe)
    for path in touch:
        first, later = touched(settings, path)
        then = f"; then, by their inputs: {', '.join(later)}" if later else ""
        click.echo(f"{path}: {', '.join(first) or 'nothing'}{then}")
    for stage in STAGES.values() if not touch else ():
        if stage.name in stages or (stage.reusable and not stages):
            click.echo("\n".join(_lines(stage, settings)))


def _lines(stage: Stage, settings: Settings) -> Iterator[str]:
    needed = code(stage, settings)
    yield f"{stage.name}: settings {', '.join(stage.settings)}; inputs {', '.join(stage.inputs) or 'none'}"
    yield f"  machine: {machine() if measures(stage, settings) else 'any'}"
    for name, hashed in needed["sources"].items():
        yield f"  {hashed[:12]}  {name}"
    for versions in needed["packages"].values():
        for name, (installed, locked) in versions.items():
            yield f"  {installed or 'not installed'}  {name} (lock: {locked or 'none'})"


if __name__ == "__main__":
    main()
