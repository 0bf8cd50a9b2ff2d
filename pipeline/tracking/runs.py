"""Write runs of MLflow over REST: opened, told what they are and how they go, and ended.

What is written to a run that exists is tried again where MLflow does not answer or fails: a training of hours does not
end because a database was locked for a moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential

from pipeline.tracking import rest

_METRICS_AT_ONCE, _OTHERS_AT_ONCE = 1000, 100
"""What MLflow takes in one request."""
_PATIENCE_SECONDS = 60.0


class Metric(NamedTuple):
    """One value of a curve; `milliseconds` since 1970."""

    name: str
    value: float
    milliseconds: int
    step: int = 0


def now() -> int:
    """Return the time as MLflow counts it, in milliseconds since 1970."""
    return int(time.time() * 1000)


def create(name: str, tags: Mapping[str, str]) -> tuple[str, str]:
    """Open a run of our experiment, which is made where there is none. Returns (run id, experiment id)."""
    found = experiment()
    body = {
        "experiment_id": found,
        "run_name": name,
        "start_time": now(),
        "tags": _pairs(tags),
    }
    return rest.call("POST", "runs/create", body)["run"]["info"]["run_id"], found


def log(
    run_id: str,
    *,
    metrics: Iterable[Metric] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log any number of metrics, parameters and tags."""
    listed = [
        {"key": one.name, "value": _number(one.value), "timestamp": one.milliseconds, "step": one.step}
        for one in metrics
    ]
    for kind, values, most in (
        ("metrics", listed, _METRICS_AT_ONCE),
        ("params", _pairs(params or {}), _OTHERS_AT_ONCE),
        ("tags", _pairs(tags or {}), _OTHERS_AT_ONCE),
    ):
        for start in range(0, len(values), most):
            _write("runs/log-batch", {"run_id": run_id, kind: values[start : start + most]})


def log_dataset(run_id: str, name: str, digest: str, source: str, context: str) -> None:
    """Log the data set that a run used.

    Args:
        run_id: the run.
        name: name of the data set.
        digest: what tells its versions apart, at most 36 characters.
        source: JSON: where it is from.
        context: what it was used for.
    """
    dataset = {"name": name, "digest": digest, "source_type": "dvc", "source": source}
    tags = _pairs({"mlflow.data.context": context})
    _write("runs/log-inputs", {"run_id": run_id, "datasets": [{"dataset": dataset, "tags": tags}]})


def set_tag(run_id: str, key: str, value: str) -> None:
    """Set one tag of a run."""
    _write("runs/set-tag", {"run_id": run_id, "key": key, "value": value})


def update(run_id: str, status: str) -> None:
    """Set the status of a run: RUNNING, FINISHED, FAILED or KILLED; any but RUNNING ends it now."""
    body: dict[str, Any] = {"run_id": run_id, "status": status}
    if status != "RUNNING":
        body["end_time"] = now()
    _write("runs/update", body)


@retry(
    retry=retry_if_exception_type(ConnectionError),
    stop=stop_after_delay(_PATIENCE_SECONDS),
    wait=wait_exponential(multiplier=0.5, max=10),
    reraise=True,
)
def _write(path: str, body: Mapping[str, Any]) -> None:
    rest.call("POST", path, body)


def experiment() -> str:
    """Return the id of our experiment, made where there is none."""
    if (found := rest.experiment_id()) is not None:
        return found
    try:
        return rest.call("POST", "experiments/create", {"name": rest.EXPERIMENT})["experiment_id"]
    except rest.Refused:  # another process was quicker
        found = rest.experiment_id()
        if found is None:
            raise
        return found


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _number(value: float) -> float | str:
    """A number as protobuf's JSON has it, which knows what JSON does not."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
