"""What a stage's result depends on, as one hash; and the quick look into MLflow for a result that is already there.

A fingerprint covers the stage, its settings, what its inputs are and the version of the code. Importing MLflow takes
seconds, and most tasks of a repeated run need nothing but this look: so it speaks MLflow's REST interface directly.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FlyweightError
from pipeline.graph import Stage
from pipeline.machine import places, workspace
from pipeline.settings.schema import Settings

EXPERIMENT = "flyweight"
TAG = "flyweight."
"""Every tag of ours in MLflow begins with this."""


@dataclass(frozen=True)
class Input:
    """One input of a stage, found: either a run's artifacts or a directory."""

    name: str
    identity: str
    """Equal for equal content: a run id, or a hash of a directory's bytes."""
    run_id: str | None
    directory: Path | None


def code_version() -> tuple[str | None, str]:
    """Return (version, why): what the code is, or None where a dirty tree means that it cannot be told.

    ``FLYWEIGHT_CODE_VERSION`` (set in images, which hold no git) goes before git.
    """
    if given := os.environ.get("FLYWEIGHT_CODE_VERSION"):
        return given, "FLYWEIGHT_CODE_VERSION"
    watched = ["pipeline", "requirements.lock"]
    try:
        if _git("status", "--porcelain", "--", *watched):
            return None, "the working tree differs from the commit"
        return hashlib.sha256(_git("ls-tree", "HEAD", *watched).encode()).hexdigest()[:16], "git"
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"git cannot tell the version of the code ({error})"


def git_commit() -> str:
    """Return the commit that the code was taken from, or an empty string outside git."""
    try:
        return _git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FLYWEIGHT_CODE_VERSION", "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(workspace.root()), *arguments], capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout.strip()


def stage_settings(stage: Stage, settings: Settings) -> dict[str, Any]:
    """Return the sections that `stage` takes, as plain data."""
    tree = settings.model_dump(mode="json")
    return {name: tree[name] for name in stage.settings}


def fingerprint(stage: Stage, settings: Settings, inputs: Mapping[str, Input], code: str) -> str:
    """Return the hash of everything that the result of `stage` depends on."""
    facts = {
        "stage": stage.name,
        "settings": stage_settings(stage, settings),
        "inputs": {name: found.identity for name, found in inputs.items()},
        "code": code,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def tree_hash(directory: Path) -> str:
    """Return a hash over the names and bytes of all files below `directory`."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(directory)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


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
    return {name: _find_input(name, value) for name, value in given.items()}


def _find_input(name: str, value: str) -> Input:
    directory = Path(value)
    if directory.is_dir():
        return Input(name, tree_hash(directory), None, directory.resolve())
    run = get_run(value)
    status = run["info"]["status"]
    tags = tags_of(run)
    if status != "FINISHED":
        raise FlyweightError(f"input {name}={value}: that run is {status}; only a FINISHED run hands anything over")
    if path := tags.get(f"{TAG}data"):  # data stays where DVC put it; what counts is the bytes that are there now
        where = workspace.root() / path
        if not where.is_dir():
            raise FlyweightError(f"input {name}: {where} is gone; run `flyweight prepare_data`")
        return Input(name, tree_hash(where), value, where)
    return Input(name, tags.get(f"{TAG}identity", value), value, None)


def finished_run(hashed: str) -> dict[str, Any] | None:
    """Return the newest FINISHED run with this fingerprint."""
    found = search_runs(f"tags.`{TAG}fingerprint` = '{hashed}' and attributes.status = 'FINISHED'", limit=1)
    return found[0] if found else None


def get_run(run_id: str) -> dict[str, Any]:
    """Return a run by its id. Raises `FlyweightError` where there is none."""
    try:
        return _call("GET", "runs/get", {"run_id": run_id})["run"]
    except urllib.error.HTTPError as error:
        if error.code in {400, 404}:
            raise FlyweightError(
                f"{run_id!r} is neither a directory nor a run of MLflow at {places.mlflow()}"
            ) from error
        raise


def search_runs(where: str, limit: int = 100) -> list[dict[str, Any]]:
    """Return runs of our experiment, newest first."""
    experiment = experiment_id()
    if experiment is None:
        return []
    body = {
        "experiment_ids": [experiment],
        "filter": where,
        "max_results": limit,
        "order_by": ["attributes.start_time DESC"],
    }
    return _call("POST", "runs/search", body).get("runs", [])


def experiment_id() -> str | None:
    """Return the id of our experiment, or None before the first run."""
    try:
        return _call("GET", "experiments/get-by-name", {"experiment_name": EXPERIMENT})["experiment"]["experiment_id"]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def set_tag(run_id: str, key: str, value: str) -> None:
    """Set one tag of a run."""
    _call("POST", "runs/set-tag", {"run_id": run_id, "key": key, "value": value})


def update_run(run_id: str, status: str) -> None:
    """Set the status of a run: RUNNING, FINISHED, FAILED or KILLED; any but RUNNING ends it now."""
    body: dict[str, Any] = {"run_id": run_id, "status": status}
    if status != "RUNNING":
        body["end_time"] = int(time.time() * 1000)
    _call("POST", "runs/update", body)


def artifact(run_id: str, path: str) -> bytes | None:
    """Return one artifact of a run, or None where it has no such file."""
    query = urllib.parse.urlencode({"path": path, "run_uuid": run_id})
    try:
        with urllib.request.urlopen(f"{places.mlflow()}/get-artifact?{query}", timeout=30) as answer:  # noqa: S310
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code in {400, 404, 500}:  # MLflow answers 500 for a file that is not there
            return None
        raise


def tags_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a run as MLflow's REST interface gives it."""
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def run_url(run_id: str, experiment: str) -> str:
    """Return the address of a run in MLflow's UI."""
    return f"{places.mlflow_ui()}/#/experiments/{experiment}/runs/{run_id}"


def _call(method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    url = f"{places.mlflow()}/api/2.0/mlflow/{path}"
    data = None
    if method == "GET":
        url += f"?{urllib.parse.urlencode(body)}"
    else:
        data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise ConnectionError(
            f"MLflow does not answer at {places.mlflow()} ({error.reason}); start it with `flyweight up`"
        ) from error


def report_url(run_id: str, experiment: str) -> str:
    """Return where MLflow's UI shows the evidence page of a pipeline run; its plain artifact address only downloads."""
    return f"{run_url(run_id, experiment)}/artifacts/report.html"
