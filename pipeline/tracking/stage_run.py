"""The nested run of one stage in MLflow: opened or taken up again, told what goes in, how it goes, and what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.graph import Stage
from pipeline.progress.follow import Event
from pipeline.records.candidates import CANDIDATES_FILE
from pipeline.records.data import DATA_FILE
from pipeline.records.promotion import PROMOTION_FILE
from pipeline.settings.schema import Settings
from pipeline.tracking import artifacts, fingerprint, lineage, models, rest, runs
from pipeline.tracking.client import make_client, translated
from pipeline.tracking.inputs import Input
from pipeline.tracking.rest import TAG

_GROUPS = {
    "size": ("parameters", "macs"),
    "steps": ("epoch", "epochs", "best_epoch", "lr"),
    "time": ("seconds", "stage_seconds", "images_per_second"),
}
"""Group -> metrics that say how a stage went, not how good its result is. MLflow draws groups of a name after the rest."""
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}


def metric_name(name: str) -> str:
    """Return the name under which MLflow keeps a metric: counters and constants in groups, so that loss and accuracy lead."""
    return f"{_GROUP_OF[name]}/{name}" if name in _GROUP_OF else name


def open_nested(stage: Stage, parent: str, pipeline: str) -> tuple[str, str]:
    """Return (run id, experiment id): the run that a killed or failed attempt left, opened again, or a new one."""
    where = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{TAG}stage` = '{stage.name}'"
    for run in rest.search_runs(where):
        info, tags = run["info"], rest.tags_of(run)
        if info["status"] == "RUNNING" and lineage.is_alive(tags[f"{TAG}process"]):
            raise RuntimeError(f"{stage.name} of {pipeline} is already running as process {tags[f'{TAG}process']}")
        if info["status"] != "FINISHED" and f"{TAG}error" not in tags:
            runs.update(info["run_id"], "RUNNING")
            runs.log(info["run_id"], tags=lineage.tags())
            return info["run_id"], info["experiment_id"]
    tags = {**lineage.tags(), "mlflow.parentRunId": parent, f"{TAG}stage": stage.name, f"{TAG}pipeline": pipeline}
    return runs.create(stage.name, tags)


def log_beginning(run_id: str, stage: Stage, settings: Settings, inputs: Mapping[str, Input]) -> None:
    """Log settings, version of the code and inputs."""
    known = rest.params_of(rest.get_run(run_id))  # an attempt before this one may have logged them; they cannot change
    flat = _flatten(fingerprint.stage_settings(stage, settings))
    tags = {f"{TAG}code": fingerprint.code_version(stage, settings)}
    tags |= {f"{TAG}input.{name}": found.run_id or str(found.directory) for name, found in inputs.items()}
    if data := inputs.get("data"):
        source = json.dumps({"path": str(data.directory)})
        runs.log_dataset(run_id, settings.data.dataset, data.identity[:36], source, context=stage.name)
        if data.run_id:
            theirs = rest.tags_of(rest.get_run(data.run_id))
            tags |= {key: theirs[key] for key in (f"{TAG}dvc_md5", f"{TAG}dvc_rev") if key in theirs}
    runs.log(run_id, params={key: value for key, value in flat.items() if key not in known}, tags=tags)


def log_curves(run_id: str, events: list[Event]) -> None:
    """Log the metrics of progress events as curves."""
    metrics = [
        runs.Metric(metric_name(name), float(value), int(event["time"] * 1000), int(event["step"]))
        for event in events
        for name, value in event["metrics"].items()
    ]
    runs.log(run_id, metrics=metrics)


def log_output(experiment: str, run_id: str, out: Path, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Log what the stage's function left, and end the run. The status comes last: it is what makes the rest readable."""
    at = runs.now()
    runs.log(run_id, metrics=[runs.Metric(metric_name(key), float(value), at) for key, value in metrics.items()])
    artifacts.put(run_id, out)
    if (out / CANDIDATES_FILE).is_file():
        with translated("logging the candidates"):
            models.log_all(make_client(), experiment, run_id, out)
    runs.log(run_id, tags={**tags, **_tags_from_output(out)})
    runs.update(run_id, "FINISHED")


def _tags_from_output(out: Path) -> dict[str, str]:
    """Lineage that only the stage's function could know."""
    tags: dict[str, str] = {}
    if (out / DATA_FILE).is_file():
        data = json.loads((out / DATA_FILE).read_text(encoding="utf-8"))
        tags[f"{TAG}data"] = data["path"]
        tags |= {f"{TAG}{key}": str(data[key]) for key in ("dvc_md5", "dvc_rev") if data.get(key)}
    if (out / PROMOTION_FILE).is_file():
        promotion = json.loads((out / PROMOTION_FILE).read_text(encoding="utf-8"))
        tags["triton.model"], tags["triton.version"] = promotion["model"], str(promotion["version"])
        tags["triton.sha256"] = promotion["sha256"]
    return tags


def _flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(tree, Mapping):
        return {
            key: value
            for name, branch in tree.items()
            for key, value in _flatten(branch, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: str(tree)}
