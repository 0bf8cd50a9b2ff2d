"""Record in MLflow what is no stage of a pipeline run, such as a search for serving settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking import client as mlflow_client
from pipeline.tracking import lineage, rest
from pipeline.tracking.client import translated
from pipeline.tracking.rest import TAG


def log_run(kind: str, parameters: Mapping[str, Any], metrics: Mapping[str, float], directory: Path) -> str:
    """Record one run of `kind`, FINISHED at once, and return its address; the files in `directory` become its artifacts.

    Raises `ConnectionError` where MLflow does not answer.
    """
    client = mlflow_client.make()
    from mlflow.entities import Metric, Param

    experiment = mlflow_client.experiment(client)
    now = int(time.time() * 1000)
    with translated(f"recording {kind}"):
        run_id = client.create_run(experiment, run_name=kind, tags={**lineage.tags(), f"{TAG}kind": kind}).info.run_id
        client.log_batch(
            run_id,
            metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
            params=[Param(key, str(value)) for key, value in parameters.items()],
        )
        client.log_artifacts(run_id, str(directory))
        client.set_terminated(run_id, "FINISHED")
    return rest.run_url(run_id, experiment)
