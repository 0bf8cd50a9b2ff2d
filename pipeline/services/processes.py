"""Processes that outlive the command that started them, and can be found and ended again.

Each is wrapped in `pipeline.services.supervise`, so that ending the wrapper ends everything below it, daemons included. What runs is
written to ``<home>/run/<name>.json``; a pid counts as ours only while its start time is the one written down.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.machine import places
from pipeline.services import supervise

MARK = "FLYWEIGHT_STACK"
"""Environment variable of everything below a supervised process; its value is the directory of the state files."""
RESTART_PAUSE_SECONDS = 0.25
"""How long the supervisor waits before the first restart of what failed; the pause doubles with each failure in a row."""
_CLOCK_SECONDS = 2.0  # how far a start time may seem to move when the clock is set


@dataclass(frozen=True)
class Record:
    """A process that was started, as ``<home>/run/<name>.json`` keeps it."""

    name: str
    pid: int
    started: float
    """Seconds since the epoch."""
    command: list[str]
    log: str


def start(name: str, command: list[str], environment: Mapping[str, str], *, restart: bool = False) -> Record:
    """Start `command` under a supervisor, in a session of its own, with its output in ``<home>/logs/<name>.log``.

    With `restart` it is started again when it fails by itself; the log says so.
    """
    again = [f"--restart={RESTART_PAUSE_SECONDS:g}"] if restart else []
    log = log_file(name)
    if log.exists():
        log.replace(log.with_suffix(".old.log"))
    # The supervisor ends when its standard input does. It holds both ends of this pipe, so that never happens by itself.
    read, write = os.pipe()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.services.supervise", *again, *command],
            stdin=read,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            cwd=log.parent,  # holds nothing that Python could take for a package, as <home>/triton
            env={**environment, MARK: str(_directory())},
            start_new_session=True,
        )
    finally:
        for opened in (read, write, descriptor):
            os.close(opened)
    record = Record(name, process.pid, psutil.Process(process.pid).create_time(), command, str(log))
    _save(record)
    return record


def running(name: str) -> Record | None:
    """Return the record of `name` while its process lives, else None."""
    file = _directory() / f"{name}.json"
    if not file.exists():
        return None
    record = Record(**json.loads(file.read_text(encoding="utf-8")))
    return record if _process(record) else None


def stop(names: Iterable[str]) -> list[str]:
    """End the processes called `names`, all at once, with everything below them; return a line on each that ran."""
    lines = []
    ending = []
    for name in names:
        record = running(name)
        process = _process(record) if record else None
        if process:
            below = process.children(recursive=True)
            lines.append(f"stopped {name} (pid {process.pid} and {len(below)} below it)")
            process.terminate()
            ending.append(process)
    # The supervisor kills what is left after its own grace; who has not ended by then is stuck.
    _, stuck = psutil.wait_procs(ending, timeout=supervise.GRACE_SECONDS + 5)
    _kill([*(child for process in stuck for child in process.children(recursive=True)), *stuck])
    for name in names:
        (_directory() / f"{name}.json").unlink(missing_ok=True)
    return lines


def stop_strays() -> list[str]:
    """Kill what a supervisor that was itself killed has left behind; return a line on each."""
    ours = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    strays = [process for process in psutil.process_iter() if process.pid not in ours and _is_marked(process)]
    lines = [f"killed a stray of an earlier start (pid {process.pid})" for process in strays]
    _kill(strays)
    return lines


def tail(name: str, lines: int = 15) -> str:
    """Return the last lines of the log of `name`."""
    log = log_file(name)
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if log.exists() else ""


def log_file(name: str) -> Path:
    """Return where the output of `name` goes."""
    return _private(places.home() / "logs") / f"{name}.log"


def is_free(port: int) -> bool:
    """Whether a server could listen on loopback `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listener(port: int) -> psutil.Process | None:
    """Return the process that listens on `port`, or None where there is none or the system does not say."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            with suppress(psutil.NoSuchProcess):
                return psutil.Process(connection.pid)
    return None


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _process(record: Record) -> psutil.Process | None:
    """The process of `record`; None where it has ended, also where its pid belongs to another one now."""
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.started) < _CLOCK_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _is_marked(process: psutil.Process) -> bool:
    try:
        return process.environ().get(MARK) == str(_directory())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _save(record: Record) -> None:
    file = _directory() / f"{record.name}.json"
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        json.dump(asdict(record), out)
    fresh.replace(file)


def _directory() -> Path:
    return _private(places.home() / "run")


def _private(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    return directory
