"""Airflow without a database: a home of its own, and dags/ on the path as the DAG processor puts it there."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "toys" / "stand_in.py"

# Airflow reads its home when it is imported, and writes airflow.cfg there: never the user's.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="flyweight-airflow-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
sys.path.insert(0, str(ROOT / "dags"))


@pytest.fixture(scope="session")
def exceptions():
    """What Airflow raises. It takes seconds to import, which only the process that runs these tests should spend."""
    from airflow.sdk import exceptions

    return exceptions


class TaskInstance:
    """What the operator uses of Airflow's task instance."""

    try_number = 1
    log_url = "http://127.0.0.1:8080/dags/make_proxy/runs/run-7/tasks/train?try_number=1"

    def __init__(self) -> None:
        self.pushed: dict[str, str] = {}

    def xcom_push(self, key: str, value: str) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str) -> str:
        return f"{task_ids}-run"


@pytest.fixture
def context(tmp_path, monkeypatch):
    """A function: the DAG run's configuration -> what Airflow gives to `execute`."""
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path))

    def make(**conf):
        return {"dag_run": SimpleNamespace(conf=conf), "run_id": "run-7", "ti": TaskInstance()}

    return make


@pytest.fixture
def operator():
    """A function: stage -> its operator around the stand-in command, callable without Airflow's task runner."""
    from airflow.sdk.bases.operator import ExecutorSafeguard
    from stage_operator import StageOperator

    ExecutorSafeguard.test_mode = True

    def make(stage="train", **arguments):
        command = (sys.executable, "-S", str(STAND_IN))
        return StageOperator(task_id=stage, stage=stage, command=command, **arguments)

    return make
