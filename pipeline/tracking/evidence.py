"""Gather what one pipeline run proved, from MLflow alone: for the report, the demo's last table and `flyweight status`.

Reads through MLflow's REST interface, so nothing heavy is imported.
"""

from __future__ import annotations

import json
import time
from typing import Any

from pipeline.errors import FlyweightError
from pipeline.graph import STAGES
from pipeline.records.data import DATA_FILE
from pipeline.records.engines import ENGINES_FILE
from pipeline.records.evaluation import EVALUATION_FILE
from pipeline.records.promotion import PROMOTION_FILE, SERVED_FILE
from pipeline.records.quantization import QUANTIZATION_FILE
from pipeline.records.training import BASELINE_FILE, HISTORY_FILE
from pipeline.records.verdict import VERDICT_FILE
from pipeline.tracking import artifacts, rest
from pipeline.tracking.rest import TAG


def gather(pipeline: str) -> dict[str, Any]:
    """Return everything known of a pipeline run; a part that is not there (yet) is None. Raises `FlyweightError`."""
    parent = find_parent(pipeline)
    info, tags = parent["info"], rest.tags_of(parent)
    stages = _stages(tags)
    runs = {stage["stage"]: stage["run_id"] for stage in stages if stage["run_id"]}
    return {
        "pipeline": tags[f"{TAG}pipeline"],
        "parent_run_id": info["run_id"],
        "parent_url": rest.run_url(info["run_id"], info["experiment_id"]),
        "report_url": rest.report_url(info["run_id"], info["experiment_id"]),
        "runs_url": rest.runs_url(info["experiment_id"]),
        "begun": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info["start_time"] / 1000)),
        "stages": stages,
        "verdict": _json(runs.get("evaluate"), VERDICT_FILE),
        "evaluation": _json(runs.get("evaluate"), EVALUATION_FILE),
        "history": {name: _json(runs.get(name), HISTORY_FILE) for name in ("train", "distill", "prune")},
        "baseline": _json(runs.get("distill"), BASELINE_FILE),
        "quantization": _json(runs.get("quantize"), QUANTIZATION_FILE),
        "engines": _json(runs.get("build_tensorrt"), ENGINES_FILE),
        "promotion": _json(runs.get("promote"), PROMOTION_FILE),
        "served": _json(runs.get("verify_served"), SERVED_FILE),
        "data": _json(runs.get("prepare_data"), DATA_FILE),
        "settings": _settings(runs),
        "lineage": _lineage(tags, runs),
    }


def is_complete(evidence: dict[str, Any]) -> bool:
    """Whether every stage of a gathered pipeline run has ended well."""
    return all(stage["status"] in {"finished", "reused", "skipped"} for stage in evidence["stages"])


def find_parent(pipeline: str) -> dict[str, Any]:
    """Return the parent run of a pipeline run; ``latest`` is the newest. Raises `FlyweightError`."""
    where = f"tags.`{TAG}kind` = 'pipeline'"
    if pipeline != "latest":
        where += f" and tags.`{TAG}pipeline` = '{pipeline}'"
    found = rest.search_runs(where, limit=1)
    if not found:
        known = [rest.tags_of(run)[f"{TAG}pipeline"] for run in rest.search_runs(f"tags.`{TAG}kind` = 'pipeline'", 5)]
        raise FlyweightError(f"MLflow has no pipeline run {pipeline!r}; the newest: {', '.join(known) or 'none yet'}")
    return found[0]


def _stages(tags: dict[str, str]) -> list[dict[str, Any]]:
    """Every stage of the graph in order; one that never began is 'not run'."""
    stages = []
    for name in STAGES:
        note = tags.get(f"{TAG}stage.{name}")
        missing = {"stage": name, "run_id": None, "status": "not run", "reason": "", "url": None, "seconds": None}
        stages.append(json.loads(note) if note else missing)
    return stages


def _settings(runs: dict[str, str]) -> dict[str, str]:
    """The flat settings of all stages of the run, as MLflow recorded them."""
    settings: dict[str, str] = {}
    for run_id in runs.values():
        run = rest.get_run(run_id)
        settings |= {param["key"]: param["value"] for param in run["data"].get("params", [])}
    return settings


def _lineage(parent: dict[str, str], runs: dict[str, str]) -> dict[str, str]:
    """Where everything came from: commit, data revision, Airflow run, served version."""
    wanted = {
        "git commit": "mlflow.source.git.commit",
        "Airflow run": "airflow.run_id",
        "Airflow run URL": "airflow.run_url",
        "DVC data hash": f"{TAG}dvc_md5",
        "DVC revision": f"{TAG}dvc_rev",
        "Triton model": "triton.model",
        "Triton version": "triton.version",
        "served sha256": "triton.sha256",
    }
    tags = dict(parent)
    for name in ("prepare_data", "promote"):
        if name in runs:
            tags = {**rest.tags_of(rest.get_run(runs[name])), **tags}
    return {label: tags[key] for label, key in wanted.items() if key in tags}


def _json(run_id: str | None, path: str) -> Any:
    data = artifacts.read(run_id, path) if run_id else None
    return json.loads(data) if data else None
