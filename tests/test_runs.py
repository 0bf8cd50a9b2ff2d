"""How the tests themselves are run: a test process that dies fails the run, and the longest files start first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CRASH = """
import os, signal


def test_before():
    pass


def test_that_takes_its_process_along():
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def pytest_on(directory, *arguments):
    """Run our configuration of pytest on the tests in `directory`; return what it did."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "FLYWEIGHT"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tests" / "toys")])
    return subprocess.run(
        [*command, *arguments, str(directory)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.extra
def test_a_test_process_that_dies_fails_the_run_and_ends_it(tmp_path):
    (tmp_path / "test_crash.py").write_text(CRASH)
    (tmp_path / "test_sound.py").write_text("def test_sound():\n    pass\n")
    done = pytest_on(tmp_path, "-n", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_that_takes_its_process_along" in done.stdout
    assert "crashed" in done.stdout


def test_durations_name_files_and_seconds():
    known = json.loads((ROOT / "tests" / "durations.json").read_text(encoding="utf-8"))
    assert all(file.startswith("tests/") and seconds >= 0 for file, seconds in known.items())
