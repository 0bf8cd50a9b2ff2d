"""MLflow's own client: made in one place, and its errors translated as those of `rest` are. Importing it takes seconds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pipeline.machine import places
from pipeline.tracking import rest


def make_client() -> Any:
    """Return a client of the MLflow that `places.mlflow` names. Raises `ConnectionError` at once where none answers."""
    rest.experiment_id()  # MLflow's own client would try for minutes
    for quiet in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(quiet, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    import mlflow

    mlflow.set_tracking_uri(places.mlflow())  # model files take it from here
    return mlflow.MlflowClient(places.mlflow())


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of MLflow's client inside into those that `rest.failure` names; `what` begins the sentence."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise rest.failure(what, error.get_http_status_code(), error.error_code, error.message) from error
