"""README's two commands on machines that have nothing but what README asks for."""

import os
import shutil
import signal
import subprocess

import pytest

from pipeline.machine.workspace import SOURCE

SCRIPT = SOURCE / "infra" / "fresh_machine.sh"


@pytest.mark.machine
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_both_commands_hold_on_a_bare_machine(suite, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a bare machine is made by root alone")
    if shutil.which("debootstrap") is None:
        pytest.skip("a bare machine is made by debootstrap: apt-get install debootstrap")
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [SCRIPT, suite], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        ) as machine,
    ):
        try:
            code = machine.wait()
        finally:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGTERM)
    said = log.read_text(encoding="utf-8", errors="replace")
    assert code == 0, "\n".join(said.splitlines()[-100:])
    assert "make demo ARGS='--recipe digits': " in said
    assert "make test: " in said


def test_a_machine_without_a_suite_is_refused():
    done = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
