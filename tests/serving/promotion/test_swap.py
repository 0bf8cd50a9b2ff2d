"""benchmarks/swap.py in short: changing what serves costs no request, and nothing grows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = [pytest.mark.integration, pytest.mark.benchmark]


def test_changes_under_16_clients_lose_nothing_and_leave_nothing(triton_server, tmp_path):
    environment = os.environ | {
        "FLYWEIGHT_TRITON_HOME": str((triton_server.home / "home" / "triton").resolve()),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(ROOT / "benchmarks" / "swap.py"), "--promotions", "2", "--clients", "16"]
    done = subprocess.run(
        [*command, "--swaps", "8", "--json", str(tmp_path / "found.json")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    swap = found["swap"]
    assert (swap["promotions"], swap["rollbacks"], swap["clients"]) == (2, 2, 16)
    assert swap["requests"] > 500
    assert (swap["failed"], swap["wrong"], swap["versions_seen"]) == (0, 0, [1, 2, 3])
    assert found["memory"]["swaps"]["flat"]
    assert not found["memory"]["control"]["flat"]  # the check can fail
