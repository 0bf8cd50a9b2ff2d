"""MLflow's REST interface, as far as it is needed to read runs, with one translation of its errors.

Importing MLflow takes seconds, at the start of every task.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx

from pipeline.errors import FlyweightError
from pipeline.machine import places

EXPERIMENT = "flyweight"
TAG = "flyweight."
"""Every tag of ours in MLflow begins with this."""
_SECONDS = 30.0


class NotFound(FlyweightError):
    """MLflow has no such run, experiment, model or file."""


class Refused(FlyweightError):
    """MLflow refuses what was asked, and would again."""


def get_run(run_id: str) -> dict[str, Any]:
    """Return a run by its id. Raises `NotFound`."""
    try:
        return call("GET", "runs/get", {"run_id": run_id})["run"]
    except (NotFound, Refused) as error:  # an id that is none is refused, one that is unknown is not found
        raise NotFound(f"{run_id!r} is neither a directory nor a run of MLflow at {places.mlflow()}") from error


def finished_run(hashed: str) -> dict[str, Any] | None:
    """Return the newest FINISHED run with this fingerprint."""
    found = search_runs(f"tags.`{TAG}fingerprint` = '{hashed}' and attributes.status = 'FINISHED'", limit=1)
    return found[0] if found else None


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
    return call("POST", "runs/search", body).get("runs", [])


def experiment_id() -> str | None:
    """Return the id of our experiment, or None before the first run."""
    try:
        return call("GET", "experiments/get-by-name", {"experiment_name": EXPERIMENT})["experiment"]["experiment_id"]
    except NotFound:
        return None


def tags_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a run as MLflow's REST interface gives it."""
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def params_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a run as MLflow's REST interface gives it."""
    return {param["key"]: param["value"] for param in run["data"].get("params", [])}


def run_url(run_id: str, experiment: str) -> str:
    """Return the address of a run in MLflow's UI."""
    return f"{places.mlflow_ui()}/#/experiments/{experiment}/runs/{run_id}"


def runs_url(experiment: str) -> str:
    """Return where MLflow's UI shows all pipeline runs side by side; see `comparison.share_view`."""
    return f"{places.mlflow_ui()}/#/experiments/{experiment}/runs?viewStateShareKey=flyweight"


def report_url(run_id: str, experiment: str) -> str:
    """Return where MLflow's UI shows the evidence page of a pipeline run; its plain artifact address only downloads."""
    return f"{run_url(run_id, experiment)}/artifacts/report.html"


def call(method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what MLflow answers to a call of its REST interface; see `ask` for the errors."""
    return ask(method, f"api/2.0/mlflow/{path}", body).json()


@cache
def _client() -> httpx.Client:
    return httpx.Client(timeout=_SECONDS)


def ask(method: str, path: str, values: Mapping[str, Any]) -> httpx.Response:
    """Return MLflow's answer: the one place where its errors become ours.

    Raises `NotFound` for what is not there, `FlyweightError` for what MLflow refuses, so that a retry would be refused too,
    and `ConnectionError` where it does not answer or fails: this and `failure` are all there is.
    """
    server = places.mlflow()
    get = method == "GET"
    try:
        answer = _client().request(
            method, f"{server}/{path}", params=values if get else None, json=None if get else values
        )
    except httpx.TimeoutException as error:
        raise ConnectionError(f"MLflow at {server} gave no answer within {_SECONDS:g} seconds; see its log") from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ConnectionError(f"MLflow does not answer at {server} ({error}); start it with `flyweight up`") from error
    if answer.is_success:
        return answer
    raise failure(f"MLflow at {server}: {path}", answer.status_code, *_reason(answer))


def failure(what: str, status: int, code: str, reason: str) -> Exception:
    """Return the error that an answer of MLflow other than a success means; `what` begins its sentence.

    Args:
        what: what was tried.
        status: HTTP status.
        code: MLflow's own name of the error, or an empty string.
        reason: MLflow's own sentence.
    """
    if status == 404 or code == "RESOURCE_DOES_NOT_EXIST":
        return NotFound(f"{what}: there is no such thing: {reason}")
    if status in {401, 403}:
        return FlyweightError(f"{what}: refused ({status}): set MLFLOW_TRACKING_URI to http://user:password@host:port")
    if 400 <= status < 500 and status not in {408, 429}:
        return Refused(f"{what}: refused ({status}): {reason}")
    return ConnectionError(f"{what}: failed with {status}: {reason}; see MLflow's log")


def _reason(answer: httpx.Response) -> tuple[str, str]:
    """MLflow's name of an error and its sentence."""
    try:
        told = answer.json()
        return str(told.get("error_code", "")), str(told.get("message", answer.reason_phrase))
    except (ValueError, AttributeError):
        return "", answer.text[:200].strip() or answer.reason_phrase
