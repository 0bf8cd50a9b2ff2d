"""A stack of our own for the tests that need real servers: other ports, another home, gone without a trace afterwards."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import stack_environment
from dag_runs import EPOCHS, Ended, trainers

from pipeline.machine import places
from pipeline.services import demo, services
from pipeline.services.airflow_client import AirflowClient
from pipeline.services.doctor import browser
from pipeline.settings.schema import ROOT
from pipeline.tracking import evidence


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment in which Flyweight knows neither the user's stores nor the user's ports."""
    directory = tmp_path_factory.mktemp("stack")
    ports = dict(
        zip(("airflow", "mlflow", "triton_grpc", "triton_http", "triton_metrics"), _free_ports(5), strict=True)
    )
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MLFLOW_TRACKING_URI", "FLYWEIGHT_TRITON_GRPC", "FLYWEIGHT_DATA"):
            patch.delenv(variable, raising=False)
        patch.setenv("FLYWEIGHT_HOME", str(directory / "home"))
        patch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(directory / "triton_repo"))
        patch.setenv(
            "FLYWEIGHT_TRITON_HOME", os.environ.get("FLYWEIGHT_TRITON_HOME", str(ROOT / ".flyweight" / "triton"))
        )
        for name, port in ports.items():
            patch.setenv(f"FLYWEIGHT_{name.upper()}_PORT", str(port))
        now = {name: (before.get(name), os.environ.get(name)) for name in {*before, *os.environ}}
        stack_environment.CHANGED.update({name: values for name, values in now.items() if values[0] != values[1]})
        yield directory
    stack_environment.CHANGED.clear()


@pytest.fixture(scope="package")
def running_stack(home: Path) -> Iterator[None]:
    """MLflow, Triton and Airflow, healthy. Afterwards nothing of them may run."""
    try:
        services.up(("mlflow", "triton", "airflow"), say=lambda line: None)
        yield
    finally:
        services.down(say=lambda line: None)
    left = [process.info for process in psutil.process_iter(["pid", "cmdline"]) if _belongs_to(process, home)]
    assert left == []


@pytest.fixture(scope="package")
def started(running_stack: None, screenshots: Path) -> str:
    """The id of the first run, which a person has started with the form; without a browser, the REST API has."""
    airflow, chromium = AirflowClient(), browser()
    demo._wait_for_dag(airflow)
    if chromium is None:
        airflow.trigger(demo.DAG, "first", {"recipe": "digits", "train.fit.epochs": EPOCHS})
        return "first"
    import form

    with form.page(chromium) as page:
        form.log_in(page)
        return form.trigger(page, EPOCHS, screenshots / "airflow_form.png")


@pytest.fixture(scope="package")
def killed_once(started: str) -> Ended:
    """The first run: one of the teacher's two training processes was killed with SIGKILL after its first checkpoint."""
    airflow, deadline = AirflowClient(), time.monotonic() + 400
    while not list(places.home().glob("work/*/scratch/**/snapshot*.safetensors")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.1)
    os.kill(trainers()[0].pid, signal.SIGKILL)
    while (state := airflow.get(f"dags/{demo.DAG}/dagRuns/{started}")["state"]) == "running":
        time.sleep(1)
    return Ended(0 if state == "success" else 1, state, evidence.gather(started))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser, or a skipped test with the reason."""
    path = browser()
    if path is None:
        pytest.skip("there is no chromium on this machine; `make browser` installs it where it can")
    return path


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go; FLYWEIGHT_SCREENSHOTS names a directory that keeps them."""
    directory = Path(os.environ.get("FLYWEIGHT_SCREENSHOTS", tmp_path_factory.mktemp("screenshots")))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _belongs_to(process: psutil.Process, home: Path) -> bool:
    """Whether a process names our directory, in its command or in its environment."""
    if process.pid == os.getpid() or process.info["cmdline"] is None:
        return False
    try:
        values = [*process.info["cmdline"], process.environ().get("FLYWEIGHT_STACK", "")]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return any(str(home) in value for value in values)
