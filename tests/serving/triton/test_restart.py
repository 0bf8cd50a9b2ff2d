"""`flyweight up`'s Triton after a crash: another one serves the same versions, and clients can be told to wait for it."""

import os
import signal
import socket
import threading
import time

import numpy as np
import onnx_toys as toys
import psutil
import pytest
from serving_toys import free_port

from pipeline.machine import places
from pipeline.machine.workspace import SOURCE
from pipeline.services import processes, services
from pipeline.serving.triton import repository
from pipeline.serving.triton.artifact import from_file
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.server import SHARED_MEMORY, _shared_memory_prefix, install
from pipeline.settings.serving import Serving

pytestmark = pytest.mark.integration
ONES = {name: np.ones((1, 16), np.int32) for name in ("INPUT0", "INPUT1")}


@pytest.fixture
def up(tmp_path, monkeypatch):
    """Triton as `flyweight up` starts it, with a model `simple`, on ports and a home of its own."""
    if "FLYWEIGHT_TRITON_HOME" not in os.environ:
        monkeypatch.setenv("FLYWEIGHT_TRITON_HOME", str(places.triton()))
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(tmp_path / "triton_repo"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    for name in services.SERVICES["triton"].ports:
        monkeypatch.setenv(f"FLYWEIGHT_{name.upper()}_PORT", str(free_port()))
    monkeypatch.setattr(processes, "RESTART_PAUSE_SECONDS", 0.05)
    install()
    simple = from_file(toys.add_sub(tmp_path / "simple.onnx"))
    repository.write_model(tmp_path / "triton_repo" / "simple", simple, Serving(model="simple"), 1)
    services.up(("triton",), say=lambda line: None)
    wait_until(served)
    yield
    services.down(say=lambda line: None)
    for left in SHARED_MEMORY.glob(f"{prefix()}*"):  # of a server that was not started again
        left.unlink()


def prefix() -> str:
    return _shared_memory_prefix(places.triton_repository(), places.port("triton_grpc"))


def wait_until(done) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end, processes.tail("triton", 40)
        time.sleep(0.05)


def served() -> bool:
    with Client(timeout=2) as client:
        return client.ready("simple")


def server() -> psutil.Process:
    """The process that is the server: the supervisor's child."""
    record = processes.running("triton")
    assert record is not None
    (child,) = psutil.Process(record.pid).children()
    return child


def test_a_killed_server_is_back_with_what_it_served(up):
    first = server()
    below = first.children(recursive=True)
    assert len(below) >= 2  # a stub a copy
    first.kill()
    with Client(timeout=100, retries=60) as client:  # a client that is told to wait hears nothing of it
        assert client.infer("simple", ONES).outputs["OUTPUT0"].tolist() == [[2] * 16]
    second = server()
    assert second.pid != first.pid
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in below)
    assert "supervise: it ended with code 137; starting it again in 0.05 s (failure 1 of 6 in a row)" in processes.tail(
        "triton", 1000
    )
    stubs = {
        argument for process in second.children() for argument in process.cmdline() if argument.startswith(prefix())
    }
    assert {path.name for path in SHARED_MEMORY.glob(f"{prefix()}*")} == stubs  # the dead one's are gone
    services.down(say=lambda line: None)
    assert not second.is_running()


@pytest.mark.extra
def test_clients_that_vanish_leave_the_others_served(up):
    before = server().pid
    address = ("127.0.0.1", places.port("triton_grpc"))
    for size in (0, 9, 24, 5000):
        with socket.create_connection(address) as connection:
            connection.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(size))[: 24 + size])
    for size in (10, 200, 100_000):
        with socket.create_connection(("127.0.0.1", places.port("triton_http"))) as connection:
            head = f"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * size}\r\n\r\n"
            connection.sendall(head.encode() + b"x" * size)
    threads = [threading.Thread(target=_vanish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Triton up to 24.12 can end over a client that leaves as its request is answered; then the supervisor brings it back.
    wait_until(served)
    with Client(timeout=60, retries=60) as client:
        assert client.infer("simple", ONES).outputs["OUTPUT1"].tolist() == [[0] * 16]
    if server().pid != before:
        assert "supervise: it ended with code" in processes.tail("triton", 1000)


def _vanish(seed: int) -> None:
    """Ask with deadlines of about the time that an answer takes, and close connections with requests under way."""
    random = np.random.default_rng(seed)
    for _ in range(15):
        client = Client(timeout=float(random.uniform(0.0005, 0.003)))
        for _ in range(4):
            try:
                client.infer("simple", ONES)
            except TritonError as error:
                assert error.status in {"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED"}
        client.close()


@pytest.mark.extra
def test_a_server_that_cannot_start_is_given_up(up):
    (
        places.triton_repository() / "simple" / "99999999999999999999"
    ).mkdir()  # ends Triton 2.51 as it looks for versions
    os.kill(server().pid, signal.SIGKILL)
    wait_until(lambda: processes.running("triton") is None)
    said = processes.tail("triton", 100_000)
    assert "failure 6 of 6" in said
    status = next(state for state in services.status() if state.name == "triton")
    assert not status.running
