"""Which version of an installed package is used: as installed, and as the lock file says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path

from pipeline.files import write_json
from pipeline.machine import places, workspace

_LOCKED = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*(?:==|@).*$", re.MULTILINE)


def versions(name: str) -> dict[str, list[str]]:
    """Return distribution -> [installed version, line of the lock file] for the top-level module `name`.

    One that is not installed, or that the lock file lacks, has an empty string there.
    """
    locked = _locked()
    return {one: [_installed(one), locked.get(_normal(one), "")] for one in _distributions(name)}


@cache
def _distributions(name: str) -> tuple[str, ...]:
    """The distributions that may hold the module: most are called as it is, and to ask for the others takes a while."""
    if _installed(name):
        return (_normal(name),)
    return tuple(sorted({_normal(one) for one in _holders().get(name, [name])}))


@cache
def _holders() -> dict[str, list[str]]:
    """Top-level module -> distributions. To read this from what is installed takes a second, and so it is kept."""
    state = [
        (path, Path(path).stat().st_mtime_ns) for path in sys.path if path.endswith("-packages") and Path(path).is_dir()
    ]
    kept = places.cache() / "packages" / f"{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    found = {name: list(holders) for name, holders in metadata.packages_distributions().items()}
    with contextlib.suppress(OSError):  # where it cannot be kept, it is found again
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, found)
    return found


@cache
def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _locked() -> dict[str, str]:
    for folder in (workspace.root(), workspace.SOURCE):
        path = folder / "requirements.lock"
        if path.is_file():
            return _parse(path, path.stat().st_mtime_ns)
    return {}


@lru_cache(maxsize=8)
def _parse(path: Path, changed: int) -> dict[str, str]:
    text = path.read_text(encoding="utf-8")
    return {_normal(found[1]): found[0].rstrip(" \\") for found in _LOCKED.finditer(text)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
