"""What dvc.yaml runs: ``python -m pipeline.data fetch NAME`` into data/raw/NAME, then ``... prepare NAME`` into data/NAME."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.components import build
from pipeline.data import shards
from pipeline.data.divide import divide
from pipeline.errors import FlyweightError, SettingsError, near_miss
from pipeline.machine import workspace
from pipeline.protocols import Dataset
from pipeline.settings import parse

_log = logging.getLogger("pipeline.data")


def fetch(name: str) -> None:
    """Put the original files of `name` into data/raw/NAME."""
    dataset: Dataset = build("datasets", name, {})
    directory = workspace.root() / "data" / "raw" / name
    with _whole(directory) as partial:
        dataset.fetch(partial)
    _log.info("%s: %d files in %s", name, len(list(directory.iterdir())), directory)


def prepare(name: str) -> None:
    """Write the prepared splits of `name` into data/NAME, as ``datasets.NAME`` in params.yaml says."""
    known = parse.load().datasets
    if name not in known:
        raise SettingsError(
            f"'datasets' in params.yaml has no {name!r}; it has: {', '.join(known)}{near_miss(name, known)}"
        )
    dataset: Dataset = build("datasets", name, {})
    original = dataset.read(workspace.root() / "data" / "raw" / name)
    splits, dropped = divide(original, known[name].validation_images, known[name].split_seed)
    with _whole(workspace.root() / "data" / name) as partial:
        manifest = shards.write(partial, name=name, labels=dataset.labels, splits=splits, dropped=dropped)
    _log.info("%s: %s; dropped: %s", name, manifest.counts, manifest.dropped)


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `directory` at the end: a killed command leaves nothing that looks done."""
    partial = directory.with_name(f".{directory.name}.partial")
    for old in (partial, directory):
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(directory)


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (2: the user can repair it)."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.data", description=__doc__)
    parser.add_argument("command", choices=["fetch", "prepare"])
    parser.add_argument("name", help="a file of pipeline/data/datasets/, without .py")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        {"fetch": fetch, "prepare": prepare}[given.command](given.name)
    except FlyweightError as error:
        _log.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
