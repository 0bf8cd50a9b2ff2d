"""One pipeline run is one parent run in MLflow, found by its name: opened, noted in by every stage, reported and closed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.tracking import artifacts, comparison, lineage, rest, runs
from pipeline.tracking.rest import TAG


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: finished, reused, skipped, failed or killed; `reason` says why where it is not plain."""

    stage: str
    run_id: str
    status: str
    reason: str
    url: str
    seconds: float


def open_pipeline(name: str) -> str:
    """Return the id of the parent run of pipeline run `name`: made where there is none, opened again where it ended."""
    found = rest.search_runs(f"tags.`{TAG}pipeline` = '{name}' and tags.`{TAG}kind` = 'pipeline'", limit=1)
    if found:
        info = found[0]["info"]
        if info["status"] != "RUNNING":
            runs.update(info["run_id"], "RUNNING")
        return info["run_id"]
    close_ghosts()
    tags = {**lineage.tags(), f"{TAG}pipeline": name, f"{TAG}kind": "pipeline"}
    return runs.create(name, tags)[0]


def close_pipeline(name: str, complete: bool) -> None:
    """End the parent run, FINISHED if `complete`, else FAILED; nested runs that still say RUNNING become KILLED."""
    parent = open_pipeline(name)
    for run in rest.search_runs(f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"):
        runs.update(run["info"]["run_id"], "KILLED")
    runs.update(parent, "FINISHED" if complete else "FAILED")


def close_ghosts() -> None:
    """Mark as KILLED every RUNNING run that a process of this machine left behind when it died."""
    for run in rest.search_runs("attributes.status = 'RUNNING'"):
        owner = rest.tags_of(run).get(f"{TAG}process", "")
        if owner and not lineage.is_alive(owner):
            runs.update(run["info"]["run_id"], "KILLED")


def note(parent: str, result: StageResult) -> None:
    """Leave on the parent run how a stage ended, and when: the report and the next reader start from there."""
    runs.set_tag(parent, f"{TAG}stage.{result.stage}", json.dumps({**asdict(result), "ended": time.time()}))


def log_report(evidence: Mapping[str, Any], page: str, summary: str) -> str:
    """Put what a pipeline run proved into its parent run: the page, its summary, and the numbers that tell runs apart.

    Args:
        evidence: what `evidence.gather` found.
        page: HTML.
        summary: Markdown; it becomes the run's description.

    Returns the page's address.
    """
    parent = open_pipeline(evidence["pipeline"])
    artifacts.put_text(parent, "report.html", page)
    runs.set_tag(parent, "mlflow.note.content", summary)
    comparison.log(parent, evidence)
    experiment = rest.get_run(parent)["info"]["experiment_id"]
    comparison.share_view(experiment)
    return rest.report_url(parent, experiment)
