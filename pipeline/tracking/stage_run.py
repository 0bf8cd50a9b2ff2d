"""The nested run of one stage in MLflow: opened or taken up again, told what goes in, how it goes, and what came out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.graph import Stage
from pipeline.progress.follow import Event
from pipeline.records.candidates import CANDIDATES_FILE
from pipeline.records.data import DATA_FILE
from pipeline.records.promotion import PROMOTION_FILE
from pipeline.settings.schema import Settings
from pipeline.tracking import client as mlflow_client
from pipeline.tracking import fingerprint, lineage, models, rest
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


def open_nested(client: Any, stage: Stage, parent: str, pipeline: str) -> tuple[str, str]:
    """Return (run id, experiment id): the run that a killed or failed attempt left, opened again, or a new one."""
    where = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{TAG}stage` = '{stage.name}'"
    for run in rest.search_runs(where):
        info, tags = run["info"], rest.tags_of(run)
        if info["status"] == "RUNNING" and lineage.is_alive(tags[f"{TAG}process"]):
            raise RuntimeError(f"{stage.name} of {pipeline} is already running as process {tags[f'{TAG}process']}")
        if info["status"] != "FINISHED" and f"{TAG}error" not in tags:
            rest.update_run(info["run_id"], "RUNNING")
            for key, value in lineage.tags().items():
                rest.set_tag(info["run_id"], key, value)
            return info["run_id"], info["experiment_id"]
    tags = {**lineage.tags(), "mlflow.parentRunId": parent, f"{TAG}stage": stage.name, f"{TAG}pipeline": pipeline}
    run = client.create_run(mlflow_client.experiment(client), run_name=stage.name, tags=tags)
    return run.info.run_id, run.info.experiment_id


def log_beginning(client: Any, run_id: str, stage: Stage, settings: Settings, inputs: Mapping[str, Input]) -> None:
    """Log settings, version of the code and inputs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    known = client.get_run(run_id).data.params  # an attempt before this one may have logged them; they cannot change
    flat = _flatten(fingerprint.stage_settings(stage, settings))
    client.log_batch(run_id, params=[Param(key, value) for key, value in flat.items() if key not in known])
    client.set_tag(run_id, f"{TAG}code", fingerprint.code_version(stage, settings))
    for name, found in inputs.items():
        client.set_tag(run_id, f"{TAG}input.{name}", found.run_id or str(found.directory))
    if data := inputs.get("data"):
        dataset = Dataset(settings.data.dataset, data.identity[:36], "dvc", json.dumps({"path": str(data.directory)}))
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", stage.name)])])
        if data.run_id:
            tags = rest.tags_of(rest.get_run(data.run_id))
            for key in (f"{TAG}dvc_md5", f"{TAG}dvc_rev"):
                if key in tags:
                    client.set_tag(run_id, key, tags[key])


def log_curves(client: Any, run_id: str, events: list[Event]) -> None:
    """Log the metrics of progress events as curves."""
    from mlflow.entities import Metric

    metrics = [
        Metric(metric_name(name), float(value), int(event["time"] * 1000), int(event["step"]))
        for event in events
        for name, value in event["metrics"].items()
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def log_output(
    client: Any, experiment: str, run_id: str, out: Path, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> None:
    """Log what the stage's function left, and end the run. The status comes last: it is what makes the rest readable."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(metric_name(key), float(value), now, 0) for key, value in metrics.items()])
    client.log_artifacts(run_id, str(out))
    if (out / CANDIDATES_FILE).is_file():
        models.log_all(client, experiment, run_id, out)
    for key, value in {**tags, **_tags_from_output(out)}.items():
        client.set_tag(run_id, key, value)
    client.set_terminated(run_id, "FINISHED")


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
