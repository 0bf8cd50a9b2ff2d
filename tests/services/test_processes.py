"""Processes that outlive their starter: found again, ended with all below them, and never confused with others."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from process_state import has_ended

from pipeline.services import processes

pytestmark = pytest.mark.integration  # real processes that are started, waited for and killed

SLEEP = [sys.executable, "-c", "import time; print('awake', flush=True); time.sleep(100)"]
DAEMON = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(100)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path))
    yield tmp_path
    processes.stop([file.stem for file in (tmp_path / "run").glob("*.json")])


def _wait(condition: Callable[[], object]) -> object:
    end = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def test_a_process_is_found_again_and_its_files_are_private(home: Path) -> None:
    record = processes.start("sleeper", SLEEP, os.environ)

    assert processes.running("sleeper") == record
    state = home / "run" / "sleeper.json"
    assert json.loads(state.read_text())["command"] == SLEEP
    assert [stat.S_IMODE(path.stat().st_mode) for path in (state, state.parent, Path(record.log))] == [
        0o600,
        0o700,
        0o600,
    ]
    assert _wait(lambda: processes.tail("sleeper")) == "awake"


def test_a_process_that_is_killed_is_started_again_until_it_is_stopped(home: Path) -> None:
    record = processes.start("server", SLEEP, os.environ, restart=True)
    (first,) = psutil.Process(record.pid).children() or _wait(lambda: psutil.Process(record.pid).children())
    _wait(lambda: processes.tail("server") == "awake")
    first.kill()
    _wait(lambda: processes.tail("server").splitlines().count("awake") == 2)
    assert processes.running("server") == record
    assert "supervise: it ended with code 137; starting it again in 0.25 s" in processes.tail("server")
    processes.stop(["server"])
    assert processes.running("server") is None


def test_stop_ends_grandchildren_that_left_the_session(home: Path) -> None:
    record = processes.start("parent", [sys.executable, "-c", DAEMON], os.environ)
    grandchild = int(str(_wait(lambda: processes.tail("parent"))))
    assert psutil.pid_exists(grandchild)

    (line,) = processes.stop(["parent"])

    assert line.startswith(f"stopped parent (pid {record.pid} and 2 below it)")
    assert not psutil.pid_exists(grandchild)
    assert processes.running("parent") is None
    assert not (home / "run" / "parent.json").exists()


def test_stop_kills_a_process_that_ignores_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(100)"
    )
    record = processes.start("stubborn", [sys.executable, "-c", stubborn], os.environ)
    _wait(lambda: processes.tail("stubborn"))
    (below,) = psutil.Process(record.pid).children()
    psutil.Process(record.pid).suspend()  # a supervisor that cannot do its work either
    monkeypatch.setattr(processes.supervise, "GRACE_SECONDS", -4.5)

    processes.stop(["stubborn"])

    assert not below.is_running()
    assert processes.running("stubborn") is None


def test_a_pid_that_belongs_to_another_process_is_not_ours(home: Path) -> None:
    other = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL)
    try:
        started = psutil.Process(other.pid).create_time() - 60
        (home / "run").mkdir()
        state = {"name": "old", "pid": other.pid, "started": started, "command": SLEEP, "log": ""}
        (home / "run" / "old.json").write_text(json.dumps(state))

        assert processes.running("old") is None
        assert processes.stop(["old"]) == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_strays_of_a_killed_supervisor_are_found(home: Path) -> None:
    record = processes.start("parent", [sys.executable, "-c", DAEMON], os.environ)
    stray = int(str(_wait(lambda: processes.tail("parent"))))
    os.kill(record.pid, signal.SIGKILL)
    _wait(lambda: processes.running("parent") is None)

    assert f"killed a stray of an earlier start (pid {stray})" in processes.stop_strays()
    assert has_ended(stray)


def test_a_new_start_keeps_the_log_of_the_one_before(home: Path) -> None:
    for word in ("first", "second"):
        processes.start("talker", [sys.executable, "-c", f"print({word!r})"], os.environ)
        _wait(lambda: processes.running("talker") is None)

    assert processes.tail("talker") == "second"
    assert (home / "logs" / "talker.old.log").read_text() == "first\n"


def test_a_taken_port_is_seen_with_its_owner() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not processes.is_free(port)
        owner = processes.listener(port)
        assert owner is not None
        assert owner.pid == os.getpid()
    assert processes.is_free(port)
    assert processes.listener(port) is None
