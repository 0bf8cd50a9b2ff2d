"""Where things are on this machine: directories and loopback ports, each with the environment variable that moves it.

These are facts of a machine, not settings of a run: they never enter a fingerprint.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.machine import workspace


def home() -> Path:
    """Everything that Flyweight writes and git ignores: stores, logs, scratch. ``FLYWEIGHT_HOME``."""
    return Path(os.environ.get("FLYWEIGHT_HOME", workspace.root() / ".flyweight")).resolve()


def cache() -> Path:
    """What can be made or fetched again: it may be deleted while nothing runs. ``FLYWEIGHT_CACHE``."""
    return Path(os.environ.get("FLYWEIGHT_CACHE", home() / "cache")).resolve()


def data(dataset: str) -> Path:
    """The directory that DVC prepares for `dataset`: shards and manifest.json. ``FLYWEIGHT_DATA`` is its parent."""
    return Path(os.environ.get("FLYWEIGHT_DATA", workspace.root() / "data")).resolve() / dataset


def triton_repository() -> Path:
    """What Triton serves. ``FLYWEIGHT_TRITON_REPOSITORY``."""
    return Path(os.environ.get("FLYWEIGHT_TRITON_REPOSITORY", workspace.root() / "triton_repo")).resolve()


def triton() -> Path:
    """Where the local Triton server is unpacked. ``FLYWEIGHT_TRITON_HOME``: several homes may share one."""
    return Path(os.environ.get("FLYWEIGHT_TRITON_HOME", home() / "triton")).resolve()


def serving() -> Path:
    """Staging, store and ledger of promotions; beside the repository, so that a rename is atomic."""
    return triton_repository().parent / f".{triton_repository().name}"


def progress_file(pipeline: str) -> Path:
    """Where the stages of a pipeline run write how far they are, for whoever waits."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in pipeline)
    return home() / "run" / "progress" / f"{name}.jsonl"


def port(service: str) -> int:
    """Loopback port of airflow, mlflow, triton_grpc, triton_http or triton_metrics. ``FLYWEIGHT_<SERVICE>_PORT``."""
    defaults = {"airflow": 8080, "mlflow": 5000, "triton_grpc": 8001, "triton_http": 8000, "triton_metrics": 8002}
    return int(os.environ.get(f"FLYWEIGHT_{service.upper()}_PORT", defaults[service]))


def triton_grpc() -> str:
    """``host:port`` of Triton's gRPC endpoint. ``FLYWEIGHT_TRITON_GRPC``."""
    return os.environ.get("FLYWEIGHT_TRITON_GRPC", f"127.0.0.1:{port('triton_grpc')}")


def triton_address() -> str:
    """Where Triton's gRPC endpoint listens: on loopback, unless ``FLYWEIGHT_TRITON_ADDRESS`` says another address."""
    return os.environ.get("FLYWEIGHT_TRITON_ADDRESS", "127.0.0.1")


def triton_tls() -> Path | None:
    """Directory of the certificates with which gRPC is encrypted, or None. ``FLYWEIGHT_TRITON_TLS``."""
    directory = os.environ.get("FLYWEIGHT_TRITON_TLS")
    return Path(directory).resolve() if directory else None


def triton_mutual_tls() -> bool:
    """Whether clients too must show a certificate. ``FLYWEIGHT_TRITON_MUTUAL_TLS=1``."""
    return os.environ.get("FLYWEIGHT_TRITON_MUTUAL_TLS", "0") == "1"


def triton_units() -> int:
    """What all instances of all models may hold together while they answer; 0 is no limit. ``FLYWEIGHT_TRITON_UNITS``."""
    return int(os.environ.get("FLYWEIGHT_TRITON_UNITS", "0"))


def mlflow() -> str:
    """URL of the MLflow tracking server. ``MLFLOW_TRACKING_URI``."""
    return os.environ.get("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port('mlflow')}")


def mlflow_ui() -> str:
    """URL of MLflow as a browser reaches it: in links. ``FLYWEIGHT_MLFLOW_UI``, where containers know it by another name."""
    return os.environ.get("FLYWEIGHT_MLFLOW_UI", mlflow())


def airflow() -> str:
    """URL of Airflow's API server and UI."""
    return f"http://127.0.0.1:{port('airflow')}"
