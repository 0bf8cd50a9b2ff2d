"""Files that must be right: their hash, writes that survive a crash, and locks between processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> Path:
    """Write `value` to `path`, laid out for people, and return it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return path


def sync(paths: Iterable[Path]) -> None:
    """Bring files and directories to the disk (fsync), so that a rename that follows never outruns them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_over(new: Path, target: Path) -> None:
    """Put `new` in the place of `target` in one step, on the disk for good; both are on one file system."""
    sync([new])
    new.replace(target)
    sync([target.parent])


@contextlib.contextmanager
def lock(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Hold the lock on `path` between processes; it goes with the process, however that ends.

    Args:
        path: a file that is made where it is missing and stays; its content means nothing.
        refusal: what to say where another process holds the lock; None waits for it.

    Raises `BlockingIOError` with `refusal`.
    """
    from filelock import FileLock, Timeout  # most that read a hash here lock nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, blocking=refusal is None, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout as error:
        raise BlockingIOError(refusal) from error
    try:
        yield
    finally:
        held.release()
