"""Run a function in several processes under torchrun's agent; bring back what went wrong.

The agent runs in this process, the workers are programs of their own (`pipeline.training.distributed.worker`). They meet in a file
and talk over the loopback interface, so nothing listens to the network. They end with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline import errors
from pipeline.machine.cpu import cores
from pipeline.settings.training import Distributed

_GRACE_SECONDS = 5
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def processes(settings: Distributed) -> int:
    """Return how many processes `settings` mean on this machine."""
    if settings.nproc != "auto":
        return settings.nproc
    return torch.cuda.device_count() or min(2, cores())


def launch(function: str, job: Mapping[str, Any], settings: Distributed, scratch: Path) -> None:
    """Call ``function(job)`` in every process and return when all are done.

    Args:
        function: ``package.module:function``; it takes one dict.
        job: anything JSON can hold.
        settings: how many processes, and how they talk.
        scratch: directory for files that the processes meet by.

    Raises the `FlyweightError` that a worker raised, RuntimeError with a worker's traceback for everything else, and
    `SettingsError` where this machine has not what `settings` ask for.
    """
    count = processes(settings)
    _check(settings, count)
    meeting = scratch / "launch"
    shutil.rmtree(meeting, ignore_errors=True)
    meeting.mkdir(parents=True)
    task = {
        "function": function,
        "job": dict(job),
        "backend": _backend(settings),
        "meeting": str((meeting / "workers").resolve()),
        "threads": max(1, cores() // count),
    }
    task_file = meeting / "task.json"
    task_file.write_text(json.dumps(task), encoding="utf-8")
    arguments = ("-m", "pipeline.training.distributed.worker", str(os.getpid()), str(task_file))
    stopped = None
    with _local_only(), _signal_handlers_kept():
        try:
            elastic_launch(_configuration(settings, count, meeting), sys.executable)(*arguments)
        except ChildFailedError as error:
            raise _cause(list(error.failures.values())) from None  # the agent's own traceback says nothing
        except SignalException as signalled:
            stopped = signalled.sigval
    if stopped is not None:
        signal.raise_signal(stopped)  # the agent has ended the workers; now whoever handles it here shall
        raise RuntimeError(f"training was stopped by {stopped.name}")


def _check(settings: Distributed, count: int) -> None:
    gpus = torch.cuda.device_count()
    if settings.backend == "nccl" and not gpus:
        raise errors.SettingsError(
            "distributed.backend is 'nccl', which needs GPUs, and this machine has none: choose auto or gloo"
        )
    if gpus and count > gpus:
        raise errors.SettingsError(
            f"distributed.nproc is {count}, but this machine has {gpus} GPUs: choose auto or fewer"
        )


def _configuration(settings: Distributed, count: int, meeting: Path) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=str(meeting / "agent"),
        rdzv_configs={"store_type": "file"},
        max_restarts=settings.max_restarts,
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=str(meeting)),
        shutdown_timeout=_GRACE_SECONDS,
    )


def _cause(failures: list[ProcessFailure]) -> Exception:
    """Return what to raise: a worker's `FlyweightError` as it was, else what failed first, as something to retry."""
    failures = sorted(failures, key=lambda failure: failure.timestamp)
    for failure in failures:
        name, _, text = _reported(failure)["message"].partition(": ")
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.FlyweightError):
            return kind(text)
    first = failures[0]
    if first.exitcode < 0:
        killed = signal.Signals(-first.exitcode).name
        hint = "; the system kills what takes too much memory" if killed == "SIGKILL" else ""
        return RuntimeError(
            f"training process {first.local_rank} (pid {first.pid}) was ended by {killed}{hint}. "
            f"Run the stage again: it goes on from its last checkpoint."
        )
    trace = _reported(first)["trace"]
    return RuntimeError(f"training process {first.local_rank} failed with exit code {first.exitcode}:\n{trace}")


def _reported(failure: ProcessFailure) -> dict[str, str]:
    """Return ``message`` ("Type: text") and ``trace`` of a worker's error file; where it wrote none, the agent's words."""
    written: Any = failure.message  # declared a str, but what `record` writes is a dict
    if isinstance(written, str):
        return {"message": written, "trace": written}
    return {"message": written["message"], "trace": written["extraInfo"]["py_callstack"]}


@contextlib.contextmanager
def _local_only() -> Iterator[None]:
    """Keep the agent and the workers on the loopback interface and off shared TCP stores, which listen everywhere."""
    wanted = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers that the agent replaces."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _backend(settings: Distributed) -> str:
    if settings.backend != "auto":
        return settings.backend
    return "nccl" if torch.cuda.is_available() else "gloo"
