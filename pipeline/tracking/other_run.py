"""Record in MLflow what is no stage of a pipeline run, such as a search for serving settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking import artifacts, lineage, rest, runs
from pipeline.tracking.rest import TAG


def log_run(kind: str, parameters: Mapping[str, Any], metrics: Mapping[str, float], directory: Path) -> str:
    """Record one run of `kind`, FINISHED at once, and return its address; the files in `directory` become its artifacts.

    Raises `ConnectionError` where MLflow does not answer.
    """
    at = runs.now()
    run_id, experiment = runs.create(kind, {**lineage.tags(), f"{TAG}kind": kind})
    runs.log(
        run_id,
        metrics=[runs.Metric(key, float(value), at) for key, value in metrics.items()],
        params={key: str(value) for key, value in parameters.items()},
    )
    artifacts.put(run_id, directory)
    runs.update(run_id, "FINISHED")
    return rest.run_url(run_id, experiment)
