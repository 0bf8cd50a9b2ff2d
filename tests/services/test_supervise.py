"""No process outlives its supervisor, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_state import has_ended

from pipeline.services import supervise

pytestmark = pytest.mark.integration  # real processes that are started, waited for and killed

# A command with a child in a session of its own, as torchrun's workers are. It writes both process ids.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1] + ".part", "w").write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
"""


def start(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "pipeline.services.supervise", *command], stdin=subprocess.PIPE)


def family(tmp_path: Path, then: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start the family under a supervisor; return the supervisor and the pids of parent and child."""
    supervisor = start(sys.executable, "-S", "-c", FAMILY + then, str(tmp_path / "pids"))
    wait_until((tmp_path / "pids").exists)
    return supervisor, [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def wait_until(done) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end, "waited 30 seconds"
        time.sleep(0.02)


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_the_exit_code_is_the_one_a_shell_gives(command, code):
    supervisor = start("sh", "-c", command)
    assert supervisor.wait(30) == code


def test_what_the_command_leaves_behind_is_ended(tmp_path):
    supervisor, (_, child) = family(tmp_path, "sys.exit(0)")
    assert supervisor.wait(30) == 0
    assert has_ended(child)


def test_killing_the_command_ends_its_children(tmp_path):
    supervisor, (parent, child) = family(tmp_path, "time.sleep(600)")
    os.kill(parent, signal.SIGKILL)
    assert supervisor.wait(30) == 128 + signal.SIGKILL
    assert has_ended(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything(tmp_path, number):
    supervisor, pids = family(tmp_path, "time.sleep(600)")
    supervisor.send_signal(number)
    assert supervisor.wait(30) == 128 + signal.SIGTERM
    assert all(map(has_ended, pids))


def test_a_closed_standard_input_ends_everything(tmp_path):
    supervisor, pids = family(tmp_path, "time.sleep(600)")
    supervisor.stdin.close()
    assert supervisor.wait(30) == 128 + signal.SIGTERM
    assert all(map(has_ended, pids))


def test_killing_the_supervisor_ends_the_command(tmp_path):
    supervisor, (parent, child) = family(tmp_path, "time.sleep(600)")
    supervisor.kill()
    supervisor.wait(30)
    wait_until(lambda: has_ended(parent))
    assert has_ended(parent)
    os.kill(child, signal.SIGKILL)  # nobody is left to do it: see the module's promise, which is about its caller


def test_a_command_that_ignores_the_request_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.2)
    ready = tmp_path / "ready"
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(600)"
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:  # a process of its own, because supervise takes signals and children of the whole process
        os.dup2(ours, 0)
        os.close(theirs)
        sys.stdin = open(0)  # noqa: SIM115
        os._exit(supervise.run([sys.executable, "-S", "-c", code]))
    wait_until(ready.exists)
    os.close(theirs)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGKILL


def forked(tmp_path, *command: str):
    """Run `supervise.run` with restarts and short pauses in a process of its own; return its pid, its output, our end."""
    ours, theirs = os.pipe()
    said = tmp_path / "said"
    pid = os.fork()
    if pid == 0:
        os.dup2(ours, 0)
        os.close(theirs)
        sys.stdin, sys.stdout = open(0), said.open("w")  # noqa: SIM115
        os._exit(supervise.run(list(command), restart=0.01))
    return pid, said, theirs


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_fails_by_itself_is_started_again(tmp_path):
    starts = tmp_path / "starts"
    pid, said, _ = forked(tmp_path, "sh", "-c", f"echo x >> {starts}; test $(wc -l < {starts}) -ge 3")
    assert code_of(pid) == 0
    assert starts.read_text() == "x\n" * 3
    assert said.read_text().splitlines() == [
        "supervise: it ended with code 1; starting it again in 0.01 s (failure 1 of 6 in a row)",
        "supervise: it ended with code 1; starting it again in 0.02 s (failure 2 of 6 in a row)",
    ]


def test_what_fails_again_and_again_is_given_up(tmp_path):
    starts = tmp_path / "starts"
    pid, said, _ = forked(tmp_path, "sh", "-c", f"echo x >> {starts}; exit 3")
    assert code_of(pid) == 3
    assert len(starts.read_text().splitlines()) == 1 + supervise.MAXIMUM_RESTARTS
    assert "failure 6 of 6" in said.read_text()


def test_what_ran_well_for_a_while_counts_from_the_start_again(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "HEALTHY_SECONDS", 0.0)
    starts = tmp_path / "starts"
    pid, said, _ = forked(tmp_path, "sh", "-c", f"echo x >> {starts}; test $(wc -l < {starts}) -ge 9")
    assert code_of(pid) == 0
    assert said.read_text().count("failure 1 of 6") == 8


def test_a_killed_command_takes_its_children_along_before_it_starts_again(tmp_path):
    pids = tmp_path / "pids"
    pid, _, theirs = forked(tmp_path, sys.executable, "-S", "-c", FAMILY + "time.sleep(600)", str(pids))
    wait_until(pids.exists)
    parent, child = map(int, pids.read_text().split())
    pids.unlink()
    os.kill(parent, signal.SIGKILL)
    wait_until(pids.exists)
    assert has_ended(child)
    again = [int(one) for one in pids.read_text().split()]
    assert not set(again) & {parent, child}
    os.close(theirs)
    assert code_of(pid) == 128 + signal.SIGTERM
    assert all(map(has_ended, again))


def test_being_told_to_stop_during_the_pause_is_heard(tmp_path, monkeypatch):
    starts = tmp_path / "starts"
    monkeypatch.setattr(supervise, "MAXIMUM_RESTARTS", 30)  # the last pauses would take years
    pid, _, theirs = forked(tmp_path, "sh", "-c", f"echo x >> {starts}; exit 3")
    wait_until(lambda: starts.exists() and len(starts.read_text().splitlines()) > 5)
    os.close(theirs)
    assert code_of(pid) == 3
