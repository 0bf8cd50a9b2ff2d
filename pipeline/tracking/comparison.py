"""What MLflow's table of runs shows of a pipeline run: the numbers by which runs are compared, its settings, its data.

The metrics stand under ``proxy/`` (the winner) and ``teacher/``, in the same order, so that MLflow draws them side by side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.records.evaluation import TEACHER, Evaluation, Measured
from pipeline.records.verdict import Verdict
from pipeline.tracking import rest, runs

_VIEW = "mlflow.sharedViewState.flyweight"
"""Tag of the experiment in which MLflow's UI looks for the view that `rest.runs_url` asks for."""
_COLUMNS = (
    "tags.`winner`",
    "metrics.`proxy/accuracy`",
    "metrics.`proxy/accuracy_drop`",
    "metrics.`proxy/size_ratio`",
    "metrics.`proxy/speedup`",
    "metrics.`proxy/served_throughput`",
    "metrics.`proxy/served_p99_ms`",
    "metrics.`wall_seconds`",
    "tags.`registered_version`",
)
_LONGEST = 6000
"""Characters of a parameter that MLflow takes."""


def metrics(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Return name -> number of the winner and the teacher, as far as the pipeline run came."""
    found = dict(_wall_time(evidence))
    if evidence.get("evaluation"):
        evaluation = Evaluation.model_validate(evidence["evaluation"])
        found |= {f"teacher/{name}": value for name, value in _numbers(evaluation.teacher, evaluation.teacher)}
        if shown := _shown(evidence):
            candidate = evaluation.candidate(shown)
            found |= {f"proxy/{name}": value for name, value in _numbers(candidate, evaluation.teacher)}
    return found


def tags(evidence: Mapping[str, Any]) -> dict[str, str]:
    """Return the words that tell runs apart: verdict, winner, data and the version that went live."""
    found: dict[str, str] = {}
    if evidence.get("verdict"):
        verdict = Verdict.model_validate(evidence["verdict"])
        found["verdict"] = verdict.verdict
        if name := verdict.winner or verdict.nearest:
            found["winner" if verdict.winner else "nearest"] = name
    if promotion := evidence.get("promotion"):
        found |= {"triton.model": promotion["model"], "triton.version": str(promotion["version"])}
        found["registered_version"] = f"{promotion['model']} {promotion['version']}"
    if data := evidence.get("data"):
        found["data"] = data["dataset"]
        found |= {f"flyweight.{key}": str(data[key]) for key in ("dvc_md5", "dvc_rev") if data.get(key)}
    return found


def log(parent: str, evidence: Mapping[str, Any]) -> None:
    """Write metrics, settings, tags and the data set into the parent run; what stands there already stays or is replaced."""
    at = runs.now()
    run = rest.get_run(parent)
    known = rest.params_of(run)  # MLflow lets none of them change
    runs.log(
        parent,
        metrics=[runs.Metric(name, float(value), at) for name, value in metrics(evidence).items()],
        params={key: value[:_LONGEST] for key, value in evidence["settings"].items() if key not in known},
        tags=tags(evidence),
    )
    if (data := evidence.get("data")) and not run.get("inputs", {}).get("dataset_inputs"):
        digest = (data.get("dvc_md5") or "without DVC").removesuffix(".dir")[:36]
        runs.log_dataset(parent, data["dataset"], digest, json.dumps(dict(data)), context="pipeline")


def share_view(experiment: str) -> None:
    """Leave in MLflow the view of its table that shows pipeline runs alone, with the numbers by which they are compared."""
    view = {
        "searchFilter": f"tags.`{rest.TAG}kind` = 'pipeline'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
    }
    body = {"experiment_id": experiment, "key": _VIEW, "value": json.dumps(view)}
    rest.call("POST", "experiments/set-experiment-tag", body)


def _shown(evidence: Mapping[str, Any]) -> str | None:
    """The winner, or the candidate that came nearest."""
    if not evidence.get("verdict"):
        return None
    verdict = Verdict.model_validate(evidence["verdict"])
    return verdict.winner or verdict.nearest


def _numbers(one: Measured, teacher: Measured) -> Iterator[tuple[str, float]]:
    if one.test:
        accuracy = one.test.accuracy
        yield from (("accuracy", accuracy.value), ("accuracy_low", accuracy.low), ("accuracy_high", accuracy.high))
        if one.test.drop:
            yield from (("accuracy_drop", one.test.drop.value), ("accuracy_drop_high", one.test.drop.high))
    yield from (("size_mb", one.size_bytes / 1e6), ("macs", one.macs), ("parameters", one.parameters))
    if one.offline and teacher.offline:
        batch = max(one.offline)
        yield "images_per_second", one.offline[batch].images_per_second
        if one.name != TEACHER and batch in teacher.offline:
            yield "speedup", one.offline[batch].images_per_second / teacher.offline[batch].images_per_second
    if one.name != TEACHER:
        yield "size_ratio", teacher.size_bytes / one.size_bytes
    if one.served:
        level = max(one.served)
        yield from (("served_throughput", one.served[level].throughput), ("served_p99_ms", one.served[level].p99_ms))
        if one.name != TEACHER and level in teacher.served:
            yield "served_speedup", one.served[level].throughput / teacher.served[level].throughput


def _wall_time(evidence: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Seconds from the beginning of the pipeline run to the end of its last stage."""
    ended = [stage["ended"] for stage in evidence["stages"] if stage.get("ended")]
    begun = time.mktime(time.strptime(evidence["begun"], "%Y-%m-%d %H:%M:%S"))
    if ended:
        yield "wall_seconds", max(0.0, max(ended) - begun)
