"""Files of runs: read one, list, put there, fetch all.

MLflow on this machine keeps them in a directory, where copying is all. Any other store is left to MLflow's own client,
whose import takes seconds.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import FlyweightError
from pipeline.machine import places
from pipeline.tracking import rest


def read(run_id: str, path: str) -> bytes | None:
    """Return one file of a run, or None where it has no such file.

    MLflow answers 500 for a file that is not there as for a store that is broken: what the run's list says tells them apart.
    """
    try:
        return rest.ask("GET", "get-artifact", {"path": path, "run_uuid": run_id}).content
    except rest.NotFound:
        return None
    except ConnectionError:
        if path in names(run_id, path.rpartition("/")[0]):
            raise
        return None


def names(run_id: str, directory: str = "") -> list[str]:
    """Return the paths of what a run has in `directory`, from its root."""
    where = {"run_id": run_id, "path": directory} if directory else {"run_id": run_id}
    return [file["path"] for file in rest.call("GET", "artifacts/list", where).get("files", [])]


def put(run_id: str, directory: Path) -> None:
    """Add all files in `directory` to a run's; one of the same name is replaced."""
    if (place := _place(run_id)) is not None:
        shutil.copytree(directory, place, dirs_exist_ok=True)
        return
    from pipeline.tracking.client import make_client, translated

    with translated(f"keeping the files of run {run_id}"):
        make_client().log_artifacts(run_id, str(directory))


def put_text(run_id: str, name: str, text: str) -> None:
    """Add one file to a run's."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(text, encoding="utf-8")
        put(run_id, Path(folder))


def fetched(run_id: str) -> Path:
    """Return a directory with the files of a FINISHED run; fetched once, since they never change."""
    cached = places.cache() / run_id
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cached.parent))
        _fetch(run_id, fresh)
        fresh.rename(cached)
    return cached


def _fetch(run_id: str, directory: Path) -> None:
    place = _place(run_id)
    if place is None:
        from mlflow.artifacts import download_artifacts

        download_artifacts(run_id=run_id, dst_path=str(directory), tracking_uri=places.mlflow())
    elif place.is_dir():
        shutil.copytree(place, directory, dirs_exist_ok=True)
    elif names(run_id):
        raise FlyweightError(
            f"the files of run {run_id} are in {place} of the machine where MLflow runs, not of this one: start that MLflow "
            f"with `--serve-artifacts`, or work where it runs"
        )


def _place(run_id: str) -> Path | None:
    """The directory of this machine that holds a run's files, or None where they are elsewhere."""
    address = urlsplit(rest.get_run(run_id)["info"]["artifact_uri"])
    return Path(unquote(address.path)) if address.scheme in {"", "file"} else None
