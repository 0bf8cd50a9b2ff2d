"""A stack of our own for the tests that need real servers: other ports, another home, gone without a trace afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow_store
import psutil
import pytest
from dag_runs import EPOCHS, Ended, trainers

from pipeline.machine import places
from pipeline.machine.workspace import SOURCE
from pipeline.services import airflow_settings, demo, services
from pipeline.services.airflow_client import AirflowClient
from pipeline.services.doctor import browser
from pipeline.tracking import evidence

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment in which Flyweight knows neither the user's stores and data nor the user's ports."""
    directory = tmp_path_factory.mktemp("stack")
    make_workspace(directory / "workspace")
    ports = dict(
        zip(("airflow", "mlflow", "triton_grpc", "triton_http", "triton_metrics"), _free_ports(5), strict=True)
    )
    (directory / "home").mkdir()
    mlflow_store.fresh(directory / "home" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MLFLOW_TRACKING_URI", "FLYWEIGHT_TRITON_GRPC", "FLYWEIGHT_DATA"):
            patch.delenv(variable, raising=False)
        patch.setenv("FLYWEIGHT_ROOT", str(directory / "workspace"))
        patch.setenv("FLYWEIGHT_HOME", str(directory / "home"))
        patch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(directory / "triton_repo"))
        patch.setenv(
            "FLYWEIGHT_TRITON_HOME", os.environ.get("FLYWEIGHT_TRITON_HOME", str(SOURCE / ".flyweight" / "triton"))
        )
        for name, port in ports.items():
            patch.setenv(f"FLYWEIGHT_{name.upper()}_PORT", str(port))
        yield directory


def make_workspace(directory: Path) -> None:
    """Write the settings and what DVC goes by, as they are now, into `directory`; DVC prepares its data there."""
    directory.mkdir()
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", ".dvcignore"):
        shutil.copy(SOURCE / name, directory)
    for name in ("recipes", "pipeline"):  # dvc.yaml names files of the package
        shutil.copytree(SOURCE / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    _hasten(directory / "recipes" / "digits.yaml")
    (directory / ".dvc").mkdir()
    (directory / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")


def _hasten(recipe: Path) -> None:
    """Train in one process and measure for a shorter time: how good and how fast each candidate is, is of no interest here.

    What two processes do, and that the death of one ends the other, tests/training and tests/stages have.
    """
    text = recipe.read_text(encoding="utf-8")
    for longer, shorter in (
        ("epochs: 12", "epochs: 8"),
        ("epochs: 6", "epochs: 4"),
        ("offline_seconds: 0.2, load_seconds: 1.0", "offline_seconds: 0.05, load_seconds: 0.15, concurrency: [16]"),
        ("served_speedup: 0.25", "served_speedup: 0.05"),
    ):
        assert longer in text
        text = text.replace(longer, shorter)
    text += "distributed: {nproc: 1}\n"
    recipe.write_text(text, encoding="utf-8")


@pytest.fixture(scope="package")
def dags(home: Path) -> Iterator[Path]:
    """The directory in which Airflow finds our DAGs; a test may add its own."""
    (home / "dags").mkdir()
    for file in (SOURCE / "dags").iterdir():
        if file.is_file():
            (home / "dags" / file.name).symlink_to(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(airflow_settings, "DAGS", home / "dags")
        yield home / "dags"


@pytest.fixture(scope="package")
def running_stack(home: Path, dags: Path) -> Iterator[None]:
    """MLflow, Triton and Airflow, healthy. Afterwards nothing of them may run."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(services, "_DEADLINE_SECONDS", 600.0)  # other tests take the cores
            services.up(("mlflow", "triton", "airflow"), say=lambda line: None)
        yield
    finally:
        services.down(say=lambda line: None)
    left = [process.info for process in psutil.process_iter(["pid", "cmdline"]) if _belongs_to(process, home)]
    assert left == []


@pytest.fixture(scope="package")
def logged_in(running_stack: None) -> Iterator[Page | None]:
    """A browser's page that Airflow knows, at rest; None where there is no browser."""
    chromium = browser()
    if chromium is None:
        yield None
        return
    import form

    demo._wait_for_dag(AirflowClient())
    with form.page(chromium) as page:
        form.log_in(page)
        yield page


@pytest.fixture(scope="package")
def started(running_stack: None, logged_in: Page | None, screenshots: Path) -> str:
    """The id of the first run, which a person has started with the form; without a browser, the REST API has."""
    airflow = AirflowClient()
    demo._wait_for_dag(airflow)
    if logged_in is None:
        airflow.trigger(demo.DAG, "first", {"recipe": "digits", "train.fit.epochs": EPOCHS})
        return "first"
    import form

    run_id = form.trigger(logged_in, EPOCHS, screenshots / "airflow_form.png")
    logged_in.goto("about:blank")  # or it would ask for the run's state every second
    return run_id


@pytest.fixture(scope="package")
def killed_once(started: str) -> Ended:
    """The first run: the teacher's training process was killed with SIGKILL after its first checkpoint."""
    airflow, deadline = AirflowClient(), time.monotonic() + 400
    while not list(places.home().glob("work/*/scratch/**/snapshot*.safetensors")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.1)
    os.kill(trainers()[0].pid, signal.SIGKILL)
    while (state := airflow.get(f"dags/{demo.DAG}/dagRuns/{started}")["state"]) == "running":
        time.sleep(2)
    return Ended(0 if state == "success" else 1, state, evidence.gather(started))


@pytest.fixture
def page(logged_in: Page | None, screenshots: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a browser, or a skipped test with the reason; where it was when the test failed is in a picture."""
    if logged_in is None:
        pytest.skip("there is no chromium on this machine; `make browser` installs it where it can")
    failed_before = request.session.testsfailed
    yield logged_in
    if request.session.testsfailed > failed_before:
        logged_in.screenshot(path=screenshots / "failed.png")
        (screenshots / "failed.html").write_text(logged_in.content(), encoding="utf-8")
        print(f"where it failed: {logged_in.url}, {screenshots / 'failed.png'}")
    logged_in.goto("about:blank")


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
