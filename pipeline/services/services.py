"""MLflow, Triton and Airflow as processes of this machine, on loopback: `flyweight up`, `down` and `status`.

Each service is one or more supervised processes (`pipeline.services.processes`) and one question that tells whether it is healthy.
What is up already stays as it is; what is missing is started side by side, since starting is mostly importing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from pipeline.errors import FlyweightError
from pipeline.files import lock
from pipeline.machine import places
from pipeline.services import processes
from pipeline.services.airflow_client import AirflowClient
from pipeline.services.airflow_settings import POOLS, USER, airflow_environment, airflow_password, password_file

Say = Callable[[str], None]
_DEADLINE_SECONDS = 180.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Service:
    """A part of the stack."""

    title: str
    processes: tuple[str, ...]
    ports: tuple[str, ...]
    """Names for `places.port`."""
    url: Callable[[], str]
    start: Callable[[Sequence[str], Say], None]
    """Starts those of its processes that are named."""
    trouble: Callable[[], str]
    """Says in words why it is not healthy; an empty string where it is."""


@dataclass(frozen=True)
class ServiceStatus:
    """How one service stands."""

    name: str
    running: bool
    healthy: bool
    detail: str

    def __str__(self) -> str:
        state = "up" if self.healthy else "unhealthy" if self.running else "down"
        return f"{self.name:8} {state:10} {self.detail}"


def up(services: Sequence[str], say: Say = click.echo) -> None:
    """Start those of `services` that do not run, and return when all are healthy.

    Raises `FlyweightError` for a taken port, and `ConnectionError` with the last lines of its log for a service that does
    not become healthy.
    """
    with _lock():
        missing = {name: _dead(SERVICES[name]) for name in services}
        for name in services:
            if missing[name]:
                check_ports(SERVICES[name])
        cancelled = threading.Event()
        with ThreadPoolExecutor(len(services)) as pool:
            bringing = {name: pool.submit(_bring_up, name, missing[name], cancelled, say) for name in services}
            try:
                for future in bringing.values():
                    future.result()
            except BaseException:
                cancelled.set()
                raise


def down(say: Say = click.echo) -> None:
    """Stop everything that `up` started, whatever it has started itself, and leave no process."""
    with _lock():
        # Airflow first, so that a running stage can still tell MLflow that it was killed.
        lines = processes.stop(SERVICES["airflow"].processes)
        lines += processes.stop([*SERVICES["triton"].processes, *SERVICES["mlflow"].processes])
        lines += processes.stop_strays()
    for line in lines or ["nothing was running"]:
        say(line)


def status() -> list[ServiceStatus]:
    """Return how each service stands."""
    return [_status(name) for name in SERVICES]


def _status(name: str) -> ServiceStatus:
    service = SERVICES[name]
    dead = _dead(service)
    if len(dead) == len(service.processes):
        return ServiceStatus(name, False, False, f"start it with `flyweight up {name}`")
    trouble = f"{' and '.join(dead)} has ended; `flyweight up {name}` starts it again" if dead else service.trouble()
    if trouble:
        return ServiceStatus(name, True, False, f"{trouble}; log: {processes.log_file((dead or service.processes)[0])}")
    return ServiceStatus(name, True, True, service.url())


def _bring_up(name: str, missing: Sequence[str], cancelled: threading.Event, say: Say) -> None:
    """Start what is missing of one service and wait until it is healthy."""
    service = SERVICES[name]
    begun = time.monotonic()
    if missing:
        service.start(missing, say)
    while (dead := _dead(service)) or (trouble := service.trouble()):
        waited = time.monotonic() - begun
        if dead or waited > _DEADLINE_SECONDS:
            process = (dead or missing or service.processes)[0]
            what = f"{process} has ended" if dead else f"it is not healthy after {waited:.0f} s: {trouble}"
            raise ConnectionError(
                f"{service.title} did not start: {what}. The last lines of its log:\n{processes.tail(process)}"
            )
        if cancelled.wait(_POLL_SECONDS):
            return
    how = f"up after {time.monotonic() - begun:.0f} s" if missing else "up already"
    say(f"{service.title} is {how}: {service.url()}")


def _dead(service: Service) -> list[str]:
    """Its processes that do not run: a heartbeat may be older than the process that sent it."""
    return [process for process in service.processes if not processes.running(process)]


def check_ports(service: Service) -> None:
    """Raise `FlyweightError` where a port is taken by something that we did not start."""
    ours = {record.pid for process in service.processes if (record := processes.running(process))}
    for name in service.ports:
        port = places.port(name)
        if processes.is_free(port):
            continue
        owner = processes.listener(port)
        if owner and ours & {owner.pid, *(parent.pid for parent in owner.parents())}:
            continue
        who = f"{owner.name()} (pid {owner.pid})" if owner else "a process that the system does not name"
        raise FlyweightError(
            f"port {port}, which {service.title} needs, is taken by {who}: "
            f"stop that, or set FLYWEIGHT_{name.upper()}_PORT to a free port"
        )


def _start_mlflow(names: Sequence[str], say: Say) -> None:
    home = places.home()
    artifacts = home / "mlartifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [
        *_program("mlflow"),
        "server",
        f"--backend-store-uri=sqlite:///{home / 'mlflow.db'}",
        # Clients are on this machine: they write files there themselves, and the server shows them.
        f"--default-artifact-root={artifacts}",
        "--no-serve-artifacts",
        "--host=127.0.0.1",
        f"--port={places.port('mlflow')}",
        "--workers=1",
    ]
    extra = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # queues for evaluating language models: four more processes
    }
    processes.start("mlflow", command, os.environ | extra)


def _mlflow_trouble() -> str:
    return _answer_trouble(f"{places.mlflow()}/health")


def _start_triton(names: Sequence[str], say: Say) -> None:
    from pipeline.serving.triton import server

    server.install()
    repository = places.triton_repository()
    repository.mkdir(parents=True, exist_ok=True)
    ports = [str(places.port(name)) for name in SERVICES["triton"].ports]
    # A program of ours that becomes the server: after a crash it looks again for what has been promoted.
    command = [sys.executable, "-m", "pipeline.serving.triton.server", str(repository), *ports]
    processes.start("triton", command, os.environ, restart=True)


def _triton_url() -> str:
    return f"gRPC {places.triton_grpc()}, HTTP http://127.0.0.1:{places.port('triton_http')}"


def _triton_trouble() -> str:
    # Live, not ready: a model that cannot be loaded makes Triton unready for good, and promotion is what repairs that.
    return _answer_trouble(f"http://127.0.0.1:{places.port('triton_http')}/v2/health/live")


def _start_airflow(names: Sequence[str], say: Say) -> None:
    home = places.home() / "airflow"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW_")}
    environment = {**inherited, **airflow_environment(home, places.port("airflow")), "DO_NOT_TRACK": "true"}
    if not password_file(home).exists():
        say(f"Airflow's login: {USER}, password {airflow_password(home)} (kept in {password_file(home)}, mode 0600)")
    _migrate(home, environment)
    for name in names:
        processes.start(name, [*_program("airflow"), *_AIRFLOW_COMMANDS[name]], environment)


def _migrate(home: Path, environment: dict[str, str]) -> None:
    """Make or upgrade Airflow's database and write airflow.cfg with fresh secrets, once for each version of Airflow."""
    version = importlib.metadata.version("apache-airflow")
    stamp = home / "migrated"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == version:
        return
    done = subprocess.run(
        [*_program("airflow"), "db", "migrate"],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise ConnectionError(f"Airflow's database cannot be made in {home}. The last lines:\n{last}")
    stamp.write_text(version, encoding="utf-8")


def _airflow_trouble() -> str:
    """Airflow is healthy when its parts send heartbeats and the pools of the DAG are there."""
    try:
        with urllib.request.urlopen(f"{places.airflow()}/api/v2/monitor/health", timeout=5) as answer:  # noqa: S310
            parts = json.load(answer)
    except OSError as error:
        return f"{places.airflow()} does not answer ({error})"
    ill = [name for name in ("metadatabase", "scheduler", "dag_processor") if parts[name]["status"] != "healthy"]
    if ill:
        return f"not healthy: {', '.join(ill)}"
    client = AirflowClient()
    try:
        for pool, (slots, description) in POOLS.items():
            client.ensure_pool(pool, slots, description)
    except OSError as error:  # an internal error too: while it starts, its database may be busy
        return f"{places.airflow()} makes no pools ({error})"
    return ""


def _answer_trouble(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return ""
    except OSError as error:
        return f"{url} does not answer ({error})"


def _program(name: str) -> list[str]:
    """A program of this virtual environment, whatever PATH says."""
    return [sys.executable, str(Path(sys.executable).parent / name)]


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Let one `up` or `down` work at a time."""
    with lock(places.home() / "stack.lock"):
        yield


_AIRFLOW_COMMANDS = {
    "airflow-api-server": ("api-server",),
    "airflow-dag-processor": ("dag-processor",),
    # The API server reads the logs of this machine from their files.
    "airflow-scheduler": ("scheduler", "--skip-serve-logs"),
}

SERVICES = {
    "mlflow": Service("MLflow", ("mlflow",), ("mlflow",), places.mlflow, _start_mlflow, _mlflow_trouble),
    "triton": Service(
        "Triton",
        ("triton",),
        ("triton_grpc", "triton_http", "triton_metrics"),
        _triton_url,
        _start_triton,
        _triton_trouble,
    ),
    "airflow": Service(
        "Airflow", tuple(_AIRFLOW_COMMANDS), ("airflow",), places.airflow, _start_airflow, _airflow_trouble
    ),
}
"""The parts of the stack by name."""
