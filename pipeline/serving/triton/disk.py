"""Changing the repository in single steps that a crash cannot halve: rename, replace, remove; never a link.

New content is made beside the repository, on the same file system, and only then moved in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline import files
from pipeline.errors import PromotionError
from pipeline.files import move_over, sync
from pipeline.machine import places

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def staging() -> Path:
    """Return where new files are made: outside the repository, as Triton takes any directory in it for a model."""
    return places.serving() / "staging"


@contextlib.contextmanager
def lock(model: str) -> Iterator[None]:
    """Hold the lock of `model`, under which alone it is changed. Raises `BlockingIOError` if another process has it."""
    refusal = f"another process is changing what {model} serves; try again when it is done"
    with files.lock(places.serving() / "lock" / model, refusal):
        yield


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new directory on the repository's file system, gone afterwards."""
    staging().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=staging()) as name:
        yield Path(name)


def rename(source: Path, target: Path) -> None:
    """Move a directory in one step. Never a link: Triton would not see it change."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    sync([target.parent])


def replace(target: Path, text: str) -> None:
    """Give a file in the repository new content in one step."""
    with scratch() as room:
        new = room / target.name
        new.write_text(text, encoding="utf-8")
        move_over(new, target)


def remove(directory: Path) -> None:
    """Take a directory out of the repository in one step, then delete it."""
    with scratch() as room:
        rename(directory, room / directory.name)


def clear_staging(model: str) -> bool:
    """Remove what an interrupted change of `model` left in the staging directory; return whether there was anything."""
    left = staging() / model
    there = left.exists()
    shutil.rmtree(left, ignore_errors=True)
    return there


@contextlib.contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn a full or closed disk into a `PromotionError` that says what is left and what to do."""
    try:
        yield
    except OSError as error:
        where = Path(os.fsdecode(error.filename)) if error.filename else places.serving()
        if error.errno in _FULL:
            clear_staging(model)
            raise PromotionError(
                f"the disk has no room for what {model} needs: {where}: {error.strerror} "
                f"({_free(where)} free). What serves serves on. Make room (`flyweight gc` removes old versions), "
                f"then promote again"
            ) from error
        if error.errno in _CLOSED:
            raise PromotionError(
                f"{where} cannot be written: {error.strerror}. What serves serves on. Promotion needs write access to "
                f"{places.triton_repository()} and {places.serving()}; the server needs to read only"
            ) from error
        raise


def _free(path: Path) -> str:
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.0f} MB"
