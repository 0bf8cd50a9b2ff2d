"""A real registry of MLflow on a file, without a server, which takes seconds to start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import mlflow_store

from pipeline.tracking.registry import MlflowRegistry


@contextlib.contextmanager
def registry_on_file(directory: Path) -> Iterator[MlflowRegistry]:
    """MLflow's client speaks to SQLite itself, and looks for models where its global address points to."""
    import mlflow

    uri = mlflow_store.fresh(directory / "mlflow.db")
    with mock.patch.dict(os.environ):  # in which MLflow leaves the address too
        mlflow.set_tracking_uri(uri)
        try:
            client = mlflow.MlflowClient(uri)
            experiment = client.create_experiment("flyweight", artifact_location=str(directory / "artifacts"))
            yield MlflowRegistry(client, experiment, run_id=None)
        finally:
            mlflow.set_tracking_uri(None)
