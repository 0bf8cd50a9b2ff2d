"""The servers of a benchmark: started on free ports of loopback, watched, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from peers.environments import PeerError
from pipeline.serving.triton import repository, server
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.serving import Serving

PEERS = Path(__file__).parent
_START_SECONDS = 180.0


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Used:
    """What a server takes: processor time in seconds since it started, resident memory and processes now."""

    cpu: float
    rss_mb: float
    processes: int


class Server:
    """A process with its children.

    Args:
        name: for messages.
        line: its command line.
        ports: port of each protocol.
        log: where its output goes.
        environment: beside this process's own.
        directory: where it runs.
    """

    def __init__(
        self,
        name: str,
        line: Sequence[str],
        ports: Mapping[str, int],
        log: Path,
        environment: Mapping[str, str],
        directory: Path | None = None,
    ) -> None:
        self.name, self.ports, self._log = name, ports, log
        with log.open("wb") as out:
            self.process = psutil.Popen(
                line,
                env=dict(environment),
                cwd=directory,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self._known: set[psutil.Process] = {self.process}
        self._seen: dict[int, float] = {}

    def address(self, protocol: str) -> str:
        """Return ``host:port``."""
        return f"127.0.0.1:{self.ports[protocol]}"

    def await_answer(self, ask: Callable[[], object]) -> None:
        """Wait until `ask` raises nothing. Raises `PeerError` with the end of the log where that takes too long."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                ask()
                return
            except Exception as error:  # each protocol has errors of its own while nobody listens
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    log = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
                    raise PeerError(f"{self.name} did not answer: {error}\n{log}") from error
                time.sleep(0.1)

    def used(self) -> Used:
        """Return what it and its children have taken so far. A child that has ended keeps what was last seen of it."""
        rss, processes = 0, 0
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                rss += process.memory_info().rss
                self._seen[process.pid] = times.user + times.system
                processes += 1
        return Used(sum(self._seen.values()), rss / 1e6, processes)

    def stop(self) -> None:
        """End it and its children; nothing happens where they have ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family()
            self.process.terminate()
        _, left = psutil.wait_procs(self._known, timeout=15)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)

    def _family(self) -> list[psutil.Process]:
        """Return the process and its children, and remember them: those of one that has died cannot be found again."""
        family = [self.process, *self.process.children(recursive=True)]
        self._known.update(family)
        return family


def triton(name: str, home: Path, models: Mapping[str, tuple[Artifact, Serving]], instead: str = "") -> Server:
    """Start a Triton of its own below `home` that serves `models` (name -> what and how).

    The file of `instead`, "identity" or "bare", takes the place of Flyweight's model.py, with the same config.
    """
    root = home / name
    folder = root / "triton_repo"
    folder.mkdir(parents=True)
    for model, (artifact, serving) in models.items():
        repository.write_model(folder / model, artifact, serving, version=1)
        if instead:
            version = folder / model / "1"
            (version / "model.py").write_bytes((PEERS / f"{instead}.py").read_bytes())
            (version / "identity.py").write_bytes((PEERS / "identity.py").read_bytes())  # for what imports it
    ports = {"grpc": free_port(), "http": free_port(), "metrics": free_port()}
    line, environment = server.command(
        folder, grpc_port=ports["grpc"], http_port=ports["http"], metrics_port=ports["metrics"]
    )
    return Server(name, line, ports, root / "log", environment)


@contextlib.contextmanager
def own_home() -> Iterator[Path]:
    """A directory for servers, with Flyweight's home in it, so that nothing of this machine's own is touched."""
    with tempfile.TemporaryDirectory(prefix="flyweight-servers-") as name, contextlib.ExitStack() as stack:
        home = Path(name)
        triton_home = str(server.install())
        changes = {"FLYWEIGHT_TRITON_HOME": triton_home, "FLYWEIGHT_HOME": str(home / "home")}
        (home / "home").mkdir()
        before = {key: os.environ.get(key) for key in changes}
        os.environ.update(changes)
        stack.callback(_restore, before)
        yield home


def fastapi(environment: Path, home: Path, model: Path, workers: int) -> Server:
    """Start plain FastAPI under uvicorn."""
    ports = {"http": free_port()}
    line = [
        *(str(environment / "bin" / "uvicorn"), "fastapi_app:app", "--host", "127.0.0.1", "--port", str(ports["http"])),
        *("--workers", str(workers), "--loop", "uvloop", "--http", "httptools", "--no-access-log"),
        *("--log-level", "warning"),
    ]
    return Server("fastapi", line, ports, home / "fastapi.log", _peer(environment, model, workers), PEERS)


def bentoml(environment: Path, home: Path, model: Path, workers: int) -> Server:
    """Start BentoML."""
    ports = {"http": free_port()}
    line = [
        *(str(environment / "bin" / "bentoml"), "serve", "bentoml_service:Service", "--host", "127.0.0.1"),
        *("--port", str(ports["http"]), "--quiet"),
    ]
    own = {"BENTOML_HOME": str(home / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return Server("bentoml", line, ports, home / "bentoml.log", _peer(environment, model, workers) | own, PEERS)


def mlserver(environment: Path, home: Path, model: Path, workers: int, largest_batch: int) -> Server:
    """Start MLServer, with adaptive batching up to `largest_batch` (0: without), waiting at most 1 ms for a batch."""
    ports = {"grpc": free_port(), "http": free_port(), "metrics": free_port()}
    name = f"mlserver-{largest_batch}"
    directory = home / name
    directory.mkdir()
    quiet = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        **{f"{protocol}_port": port for protocol, port in ports.items()},
        "parallel_workers": workers,
        "logging_settings": {**quiet, "loggers": {"mlserver": {"level": "WARNING"}}},
    }
    batching = {"max_batch_size": largest_batch, "max_batch_time": 0.001} if largest_batch else {}
    model_settings = {"name": "proxy", "implementation": "mlserver_model.Model", **batching}
    (directory / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (directory / "model-settings.json").write_text(json.dumps(model_settings), encoding="utf-8")
    line = [str(environment / "bin" / "mlserver"), "start", str(directory)]
    return Server(name, line, ports, home / f"{name}.log", _peer(environment, model, workers), directory)


def _peer(environment: Path, model: Path, workers: int) -> dict[str, str]:
    """Return a peer's environment: its own packages, our modules, one thread wherever a library would take more."""
    ours = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return ours | {
        "PATH": os.pathsep.join([str(environment / "bin"), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(PEERS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "PEER_MODEL": str(model),
        "PEER_WORKERS": str(workers),
    }


def _restore(before: Mapping[str, str | None]) -> None:
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
