"""Find a stage's inputs: each is a finished run of MLflow or a directory, with an identity that is equal for equal content.

Data is known by its manifest, which holds the hash of every shard: so no stage reads all bytes only to name them. That
the shards are what the manifest says is checked before a stage works on them, once for each state of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError, FlyweightError
from pipeline.files import sha256
from pipeline.graph import Stage
from pipeline.machine import places, workspace
from pipeline.tracking import rest
from pipeline.tracking.rest import TAG

MANIFEST_FILE = "manifest.json"
_DATA = "prepare_data"


@dataclass(frozen=True)
class Input:
    """One input of a stage, found: either a run's artifacts or a directory."""

    name: str
    identity: str
    """Equal for equal content: a run id, or a hash of a manifest or of a directory's bytes."""
    run_id: str | None
    directory: Path | None


def find_inputs(stage: Stage, given: Mapping[str, str]) -> dict[str, Input]:
    """Return every input of `stage` from ``{"teacher": "<run id or directory>"}``. Raises `FlyweightError`."""
    for name in given:
        if name not in stage.inputs:
            raise FlyweightError(f"{stage.name} has no input {name!r}; it takes: {', '.join(stage.inputs) or 'none'}")
    missing = [name for name in stage.inputs if name not in given]
    if missing:
        raise FlyweightError(
            f"{stage.name} needs {', '.join(missing)}: "
            + " ".join(f"--input {name}=<run id of {stage.inputs[name]}, or a directory>" for name in missing)
        )
    return {name: _find_input(stage, name, value) for name, value in given.items()}


def _find_input(stage: Stage, name: str, value: str) -> Input:
    directory = Path(value)
    if directory.is_dir():
        identity = _data_identity(stage, directory) if stage.inputs[name] == _DATA else tree_hash(directory)
        return Input(name, identity, None, directory.resolve())
    run = rest.get_run(value)
    status = run["info"]["status"]
    tags = rest.tags_of(run)
    if status != "FINISHED":
        raise FlyweightError(f"input {name}={value}: that run is {status}; only a FINISHED run can be an input")
    if path := tags.get(f"{TAG}data"):  # data stays where DVC put it; what counts is what is there now
        where = data_directory(path)
        if not where.is_dir():
            raise FlyweightError(f"input {name}: {where} is gone; run `flyweight prepare_data`")
        return Input(name, _data_identity(stage, where), value, where)
    return Input(name, tags.get(f"{TAG}identity", value), value, None)


def data_directory(recorded: str) -> Path:
    """Return where the data is of which a run recorded `recorded`, a path in its workspace or an absolute one.

    ``FLYWEIGHT_DATA``, the directory that holds all data sets, takes precedence.
    """
    path = Path(recorded)
    return places.data(path.name) if "FLYWEIGHT_DATA" in os.environ else workspace.root() / path


def _data_identity(stage: Stage, directory: Path) -> str:
    manifest = directory / MANIFEST_FILE
    if not manifest.is_file():
        return tree_hash(directory)
    if not stage.looks_for_damage:
        return sha256(manifest)
    return hashlib.sha256("\n".join((sha256(manifest), *_states(directory))).encode()).hexdigest()


def _states(directory: Path) -> Iterator[str]:
    """Name, size and times of every file: the time of the last change of any kind (ctime) cannot be set back."""
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        state = path.stat()
        yield f"{path.relative_to(directory)}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}"


def check_data(directory: Path) -> None:
    """Raise `DataError` unless every shard has the hash that the manifest gives it.

    Bytes are read once for each state of the files: what passed is remembered beside the caches of this machine.
    """
    manifest = directory / MANIFEST_FILE
    if not manifest.is_file():
        return
    states = "\n".join((str(directory.resolve()), sha256(manifest), *_states(directory)))
    passed = places.cache() / "checked_data" / hashlib.sha256(states.encode()).hexdigest()
    if passed.exists():
        return
    for name, shard in json.loads(manifest.read_text(encoding="utf-8")).get("shards", {}).items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path} is missing, although {manifest} lists it: {_REPAIR}")
        if sha256(path) != shard["sha256"]:
            raise DataError(f"{path} is not what {manifest} says: it was changed or damaged. {_REPAIR}")
    passed.parent.mkdir(parents=True, exist_ok=True)
    passed.touch()


_REPAIR = (
    "To have the recorded bytes again delete the directory and run `flyweight prepare_data`; "
    "where the change is meant, write the manifest again"
)


def tree_hash(directory: Path) -> str:
    """Return a hash over the names and bytes of all files below `directory`."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(directory)}\0{sha256(path)}\n".encode())
    return total.hexdigest()
