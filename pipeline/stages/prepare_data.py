"""prepare_data: have DVC fetch and prepare the data set, and say which bytes it is.

DVC owns ``data/<name>`` and ``data/raw/<name>``: what is missing or out of date is built by ``dvc repro``. What was
changed outside DVC is not silently built over: the stage stops and names it. Two kinds of data are taken as they are,
without DVC: everything where ``FLYWEIGHT_DATA`` names a directory of your own, and a data set that dvc.yaml lacks.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.manifest import MANIFEST_FILE, load_manifest
from pipeline.errors import DataError, near_miss
from pipeline.files import lock, write_json
from pipeline.machine import places, workspace
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.data import DATA_FILE
from pipeline.settings.data import Data

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

_log = logging.getLogger(__name__)


def prepare_data(config: Data, *, out: Path) -> Metrics:
    """Leave data.json (which bytes) and manifest.json in `out`; return how many images there are of what.

    Raises `DataError` where no source is reachable or DVC's files were changed outside DVC; a plain exception, worth a
    retry, where another process holds DVC's lock.
    """
    name = config.dataset
    directory = places.data(name)
    revision: dict[str, str | None] = {"dvc_md5": None, "dvc_rev": None}
    report("prepare", done=0, total=1)
    if "FLYWEIGHT_DATA" in os.environ:
        _log.info("FLYWEIGHT_DATA is set: %s is taken as it is, without DVC", directory)
    else:
        revision = _by_dvc(name, directory)
    manifest = load_manifest(directory)
    root = workspace.root().resolve()
    path = directory.relative_to(root) if directory.is_relative_to(root) else directory
    facts = {"dataset": name, "path": str(path), **revision}
    write_json(out / DATA_FILE, facts)
    shutil.copyfile(directory / MANIFEST_FILE, out / MANIFEST_FILE)
    report("prepare", done=1, total=1)
    images = {f"{split}_images": float(count) for split, count in manifest.counts.items()}
    dropped = {f"dropped_{why}": float(count) for why, count in manifest.dropped.items()}
    return {**images, **dropped, "classes": float(len(manifest.labels))}


def _by_dvc(name: str, directory: Path) -> dict[str, str | None]:
    """Bring `directory` up to date and return which revision of the data it is."""
    os.environ |= {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "true"}
    with _one_at_a_time():
        before, stale = _recorded(name)
        if before is None and directory.is_dir():
            _log.info("dvc.yaml does not prepare %s: %s is taken as it is", name, directory)
            return {"dvc_md5": None, "dvc_rev": None}
        if not stale:
            _log.info("%s is what dvc.lock says: nothing to do", directory)
            return {"dvc_md5": before, "dvc_rev": _lock_commit()}
        _reproduce(f"prepare@{name}")
        after, _ = _recorded(name)
    if before and before != after:
        _log.warning("%s is now %s, dvc.lock said %s: commit dvc.lock if that is meant", directory, after, before)
    return {"dvc_md5": after, "dvc_rev": _lock_commit()}


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait for any other prepare_data of this repository: DVC itself would fail, not wait."""
    with lock(workspace.root() / ".dvc" / "tmp" / "flyweight.lock"):
        yield


def _recorded(name: str) -> tuple[str | None, bool]:
    """Return the hash of ``data/<name>`` in dvc.lock and whether ``dvc repro`` has anything to do for it.

    The hash is None where dvc.yaml or dvc.lock has none. Raises `DataError` where files were changed outside DVC.
    """
    from dvc.repo import Repo, lock_repo

    target = f"prepare@{name}"
    with Repo(str(workspace.root())) as repo, lock_repo(repo):
        listed = [stage.name for stage in repo.index.stages]
        if target not in listed and not places.data(name).is_dir():
            known = [stage.removeprefix("prepare@") for stage in listed if stage.startswith("prepare@")]
            raise DataError(
                f"dvc.yaml prepares no data set {name!r}; it prepares: {', '.join(known)}{near_miss(name, known)}\n"
                f"Add it there, or put prepared data into {places.data(name)}"
            )
        if target not in listed:
            return None, False
        stages = repo.stage.collect(f"{workspace.root() / 'dvc.yaml'}:{target}", with_deps=True)
        _refuse_foreign_changes(repo, [out for stage in stages for out in stage.outs])
        (prepared,) = next(stage.outs for stage in stages if stage.name == target)
        return prepared.hash_info.value, any(stage.status() for stage in stages)


def _refuse_foreign_changes(repo: Repo, outs: list[Output]) -> None:
    """Raise `DataError` where what is on disk is neither what dvc.lock records nor anything else that DVC ever made."""
    foreign = []
    for out in outs:
        if out.exists:
            found = out.get_hash()
            if found != out.hash_info and not out.cache.exists(found.value):
                foreign.append(out)
    if not foreign:
        return
    names = [str(Path(out.fs_path).relative_to(repo.root_dir)) for out in foreign]
    changes = repo.data_status(granular=True)["uncommitted"]
    files = [
        f"  - {what}: {path}" for what, paths in changes.items() for path in paths if path.startswith(tuple(names))
    ]
    raise DataError(
        "\n".join(
            [
                f"{' and '.join(names)} in {repo.root_dir} was changed or damaged outside DVC: dvc.lock records something else",
                *(line for line in files if not line.endswith("/")),
                f"To have the recorded bytes again: `python -m dvc checkout --force {' '.join(names)}`, or delete it and run "
                f"again. To use data of your own: set FLYWEIGHT_DATA to the directory that holds <data set>/.",
            ]
        )
    )


def _reproduce(target: str) -> None:
    """Run ``dvc repro TARGET`` with this Python first on the path, passing on what it says. Raises `DataError`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    said = []
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", target],
        cwd=workspace.root(),
        env={**os.environ, "PATH": path, "FLYWEIGHT_ROOT": str(workspace.root())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            _log.info("%s", line.rstrip())
            said.append(line.rstrip())
    if process.returncode == 0:
        return
    text = "\n".join(line for line in said[-30:] if line)
    if "exited with 2" in text:  # our own command says so where the user can repair it
        raise DataError(f"`dvc repro {target}` failed:\n{text}")
    raise RuntimeError(f"`dvc repro {target}` failed with {process.returncode}:\n{text}")


def _lock_commit() -> str | None:
    """Return the commit whose dvc.lock this is, or None where it is not committed."""
    git = ["git", "-C", str(workspace.root())]
    if subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "dvc.lock"], capture_output=True).returncode:
        return None
    found = subprocess.run([*git, "log", "-1", "--format=%H", "--", "dvc.lock"], capture_output=True, text=True)
    return found.stdout.strip() or None
