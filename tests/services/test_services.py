"""`up`, `down` and `status` over services that are small programs of our own."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import FlyweightError
from pipeline.machine import places
from pipeline.services import processes
from pipeline.services import services as stack

SERVER = """
import http.server, sys, time
time.sleep(float(sys.argv[2]))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
BROKEN = "import sys; print('disk full'); sys.exit(3)"


@pytest.fixture(autouse=True)
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three services whose processes are web servers on free ports."""
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path))
    for name in ("airflow", "mlflow", "triton_http"):
        monkeypatch.setenv(f"FLYWEIGHT_{name.upper()}_PORT", str(_free_port()))
    monkeypatch.setattr(
        stack, "SERVICES", {"mlflow": _web("mlflow"), "triton": _web("triton_http"), "airflow": _web("airflow")}
    )
    yield
    stack.down(say=lambda line: None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _url(name: str) -> str:
    return f"http://127.0.0.1:{places.port(name)}"


def _web(name: str, code: str = SERVER, delay: float = 0.0) -> stack.Service:
    def start(names: Sequence[str], say: stack.Say) -> None:
        command = [sys.executable, "-c", code, str(places.port(name)), str(delay)]
        for one in names:
            processes.start(one, command, os.environ)

    return stack.Service(name, (name,), (name,), partial(_url, name), start, lambda: stack._answer_trouble(_url(name)))


def test_up_starts_what_is_missing_and_down_leaves_nothing() -> None:
    said: list[str] = []
    stack.up(("mlflow", "airflow"), said.append)

    assert urllib.request.urlopen(places.mlflow()).status == 200
    assert [(state.name, state.running, state.healthy) for state in stack.status()] == [
        ("mlflow", True, True),
        ("triton", False, False),
        ("airflow", True, True),
    ]
    before = processes.running("mlflow")
    assert before is not None
    assert sorted(line.split(" is ")[0] for line in said) == ["airflow", "mlflow"]

    said.clear()
    stack.up(("mlflow",), said.append)
    assert said == [f"mlflow is up already: {places.mlflow()}"]
    assert processes.running("mlflow") == before

    said.clear()
    stack.down(said.append)
    assert [line.split(" (")[0] for line in said] == ["stopped airflow", "stopped mlflow"]
    assert not any(state.running for state in stack.status())
    stack.down(said.append)
    assert said[-1] == "nothing was running"


def test_up_waits_until_a_slow_service_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stack.SERVICES, "mlflow", _web("mlflow", delay=0.6))
    stack.up(("mlflow",), lambda line: None)
    assert stack.status()[0].healthy


def test_a_service_that_ends_is_reported_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stack.SERVICES, "mlflow", _web("mlflow", code=BROKEN))
    with pytest.raises(ConnectionError) as caught:
        stack.up(("mlflow",), lambda line: None)
    assert str(caught.value) == "mlflow did not start: mlflow has ended. The last lines of its log:\ndisk full"


def test_a_service_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "_DEADLINE_SECONDS", 0.3)
    monkeypatch.setitem(stack.SERVICES, "mlflow", _web("mlflow", delay=60))
    with pytest.raises(
        ConnectionError, match=r"mlflow did not start: it is not healthy after . s: http://127\.0\.0\.1"
    ):
        stack.up(("mlflow",), lambda line: None)


def test_a_taken_port_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("FLYWEIGHT_MLFLOW_PORT", str(port))
        with pytest.raises(FlyweightError) as caught:
            stack.up(("airflow", "mlflow"), lambda line: None)
    assert str(caught.value).startswith(f"port {port}, which mlflow needs, is taken by ")
    assert str(caught.value).endswith(f"(pid {os.getpid()}): stop that, or set FLYWEIGHT_MLFLOW_PORT to a free port")
    assert processes.running("airflow") is None


def test_status_names_a_part_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _web("airflow")
    parts = stack.Service("Airflow", ("api", "scheduler"), ("airflow",), whole.url, whole.start, whole.trouble)
    monkeypatch.setitem(stack.SERVICES, "airflow", parts)
    processes.start("api", [sys.executable, "-c", SERVER, str(places.port("airflow")), "0"], os.environ)

    state = stack.status()[2]

    assert str(state) == (
        f"airflow  unhealthy  scheduler has ended; `flyweight up airflow` starts it again; log: {processes.log_file('scheduler')}"
    )
    processes.stop(["api"])


@pytest.mark.parametrize(
    ("name", "parts", "ports"),
    [
        ("mlflow", ("mlflow",), [5000]),
        ("triton", ("triton",), [8001, 8000, 8002]),
        ("airflow", ("airflow-api-server", "airflow-dag-processor", "airflow-scheduler"), [8080]),
    ],
)
def test_every_real_service_has_its_processes_and_ports(
    name: str, parts: tuple[str, ...], ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    service = stack.SERVICES[name]
    for variable in [f"FLYWEIGHT_{port.upper()}_PORT" for port in service.ports] + ["MLFLOW_TRACKING_URI"]:
        monkeypatch.delenv(variable, raising=False)
    assert service.processes == parts
    assert [places.port(port) for port in service.ports] == ports
    assert f"127.0.0.1:{ports[0]}" in service.url()
    monkeypatch.setenv(f"FLYWEIGHT_{service.ports[0].upper()}_PORT", "4711")
    assert "127.0.0.1:4711" in service.url()
