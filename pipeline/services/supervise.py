"""Run a command so that nothing of it outlives whoever asked for it: ``python -m pipeline.services.supervise COMMAND ...``.

The command gets a session of its own. It is ended (SIGTERM, then SIGKILL after `GRACE_SECONDS`), with everything that it
started, when this process gets SIGTERM or SIGINT and when its standard input is closed: the caller holds the other end, so
even a caller that is killed with -9 takes everything with it. What the command leaves behind when it ends by itself, or is
killed, is ended too. On Linux nothing escapes by a session of its own: orphans become children of this process.

With ``--restart=SECONDS`` before the command, one that fails by itself is started again, after a pause of SECONDS that doubles
with each failure in a row; after `MAXIMUM_RESTARTS` of them this process gives up.

Exit code: the command's own, or 128 + the number of the signal that ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 10.0
MAXIMUM_RESTARTS = 6
HEALTHY_SECONDS = 60.0
"""What has run for so long counts its failures from the start again."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_STOP = {signal.SIGTERM, signal.SIGINT}


def run(command: list[str], *, restart: float | None = None) -> int:
    """Run `command` until it ends or this process is told to stop; return its exit code as a shell would.

    `restart` is the pause in seconds before a first restart; None: what fails stays down.
    """
    wake, notify = os.pipe()
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify)
    for number in (signal.SIGCHLD, *_STOP):
        signal.signal(number, lambda *_: None)  # the wake-up byte says it all
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    failures = 0
    while True:
        begun = time.monotonic()
        code, told = _run_once(command, wake)
        failures = 1 if time.monotonic() - begun > HEALTHY_SECONDS else failures + 1
        if told or code == 0 or restart is None or failures > MAXIMUM_RESTARTS:
            return code
        pause = restart * 2 ** (failures - 1)
        _say(
            f"it ended with code {code}; starting it again in {pause:g} s (failure {failures} of {MAXIMUM_RESTARTS} in a row)"
        )
        if _told_within(wake, pause):
            return code


def _run_once(command: list[str], wake: int) -> tuple[int, bool]:
    """Run `command` and end whatever it leaves; return its exit code, and whether we were told to stop."""
    child = subprocess.Popen(  # this process has one thread, so code between fork and exec is safe
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
    )
    while child.poll() is None and not _told_to_stop(wake):
        pass
    told = child.returncode is None
    if told:
        _stop(child)
    code = child.wait()
    _end_orphans(child.pid)
    return (code if code >= 0 else 128 - code), told


def _told_to_stop(wake: int, seconds: float | None = None) -> bool:
    """Sleep until a signal or standard input wakes us, at most `seconds`; say whether that means stop."""
    caller = sys.stdin.fileno()
    ready, _, _ = select.select([caller, wake], [], [], seconds)
    closed = caller in ready and not os.read(caller, 4096)
    return closed or (wake in ready and bool(_STOP & set(os.read(wake, 64))))


def _told_within(wake: int, seconds: float) -> bool:
    """Sleep for `seconds`, less where we are told to stop; say whether we were."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if _told_to_stop(wake, left):
            return True
    return False


def _say(line: str) -> None:
    sys.stdout.write(f"supervise: {line}\n")
    sys.stdout.flush()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the whole session to end, and kill the command if it has not after the grace."""
    os.killpg(child.pid, signal.SIGTERM)
    end = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    child.kill()


def _end_orphans(session: int) -> None:
    """Kill what the command left behind, wherever it is, until nothing is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            _kill_descendants()
            time.sleep(0.02)


def _kill_descendants() -> None:
    import psutil  # takes longer to import than the rest of this program, and most commands leave nothing behind

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    option, _, seconds = sys.argv[1].partition("=")
    restarts = option == "--restart"
    sys.exit(run(sys.argv[1 + restarts :], restart=float(seconds) if restarts else None))
