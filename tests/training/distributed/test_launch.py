import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pipeline.errors import FlyweightError, SettingsError
from pipeline.settings.training import Distributed
from pipeline.training.distributed.launch import _cause, launch, processes

TOYS = Path(__file__).parents[2] / "toys"
ALONE = Distributed(nproc=1)


@pytest.fixture(autouse=True)
def workers(monkeypatch):
    """Let worker processes import `workers`."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))


@pytest.mark.integration
def test_a_flyweight_error_of_a_worker_comes_back_as_it_was(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    with pytest.raises(SettingsError, match=r"^train\.fit\.lr is 3: lower it$"):
        launch("workers:fail", {"error": "settings", "text": "train.fit.lr is 3: lower it"}, ALONE, tmp_path)
    assert {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")} == environment


@pytest.mark.integration
@pytest.mark.extra
def test_any_other_error_comes_back_with_the_workers_traceback(tmp_path):
    with pytest.raises(RuntimeError) as raised:
        launch("workers:fail", {"error": "value", "text": "no such thing"}, ALONE, tmp_path)
    assert not isinstance(raised.value, FlyweightError)
    assert "ValueError: no such thing" in str(raised.value) and "workers.py" in str(raised.value)


@pytest.mark.extra
@pytest.mark.integration
def test_a_worker_that_the_system_kills_may_be_tried_again(tmp_path):
    with pytest.raises(RuntimeError, match=r"was ended by SIGKILL; the system kills what takes too much memory"):
        launch("workers:end_by_signal", {}, ALONE, tmp_path)


def failure(rank, message, timestamp=1, exitcode=1):
    reported = {"message": message, "extraInfo": {"py_callstack": f"Traceback: {message}"}}
    return SimpleNamespace(local_rank=rank, pid=7, message=reported, timestamp=timestamp, exitcode=exitcode)


def test_the_users_error_counts_for_more_than_what_it_caused():
    """When one process raises, the others lose their connection, sometimes sooner by the clock."""
    cause = _cause([failure(0, "RuntimeError: peer gone", 1), failure(1, "DataError: x is missing", 2)])
    assert type(cause).__name__ == "DataError" and str(cause) == "x is missing"


def test_among_other_errors_the_first_counts():
    cause = _cause([failure(0, "RuntimeError: peer gone", 5), failure(1, "OSError: disk full", 2)])
    assert type(
        cause
    ) is RuntimeError and "training process 1 failed with exit code 1:\nTraceback: OSError: disk full" in str(cause)


def test_auto_is_two_processes_on_a_cpu_with_two_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for count, expected in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr("pipeline.training.distributed.launch.cores", lambda count=count: count)
        assert processes(Distributed()) == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert processes(Distributed()) == 8 and processes(Distributed(nproc=3)) == 3


def test_what_this_machine_has_not_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        SettingsError, match=r"distributed\.backend is 'nccl', which needs GPUs, and this machine has none"
    ):
        launch("workers:together", {}, Distributed(backend="nccl"), tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"distributed\.nproc is 3, but this machine has 2 GPUs"):
        launch("workers:together", {}, Distributed(nproc=3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.extra)], ids=str)
@pytest.mark.integration
def test_workers_end_with_the_stage_however_it_ends(tmp_path, number):
    stage = subprocess.Popen([sys.executable, str(TOYS / "workers.py"), str(tmp_path)])
    try:
        deadline = time.monotonic() + 120
        while len(found := list(tmp_path.glob("pid-*"))) < 2:
            assert stage.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        family = [psutil.Process(int(file.name.removeprefix("pid-"))) for file in found]
        stage.send_signal(number)
        assert stage.wait(30) == -number
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
    finally:
        stage.kill()
        stage.wait()
