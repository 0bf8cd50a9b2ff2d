"""`flyweight demo` as a person runs it, with real servers, on digits: what was made before is reused, then the table."""

from __future__ import annotations

import subprocess
import sys

import pytest
from dag_runs import EPOCHS, Ended

from pipeline.graph import STAGES
from pipeline.machine import places
from pipeline.services import demo
from pipeline.tracking import evidence

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def _demo() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "demo", "--recipe", "digits", "--set", f"train.fit.epochs={EPOCHS}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.extra
def test_a_second_demo_reuses_every_stage_and_ends_with_the_table(killed_once: Ended) -> None:
    again = _demo()
    assert again.returncode == 0, again.stdout + again.stderr
    for words in ("teacher", "float proxy", "pruned", "int8", "test accuracy", "MACs", "at once", "PROMOTE"):
        assert words in again.stdout
    for address in (places.airflow(), places.mlflow(), places.triton_grpc(), "passwords.json", "make down"):
        assert address in again.stdout
    stages = {stage["stage"]: stage for stage in evidence.gather("latest")["stages"]}
    for name, stage in STAGES.items():
        assert stages[name]["status"] == ("reused" if stage.reusable else "finished")
        if stage.reusable:
            assert f"{name} reused: run {stages[name]['run_id']} of " in again.stdout


def test_a_setting_that_only_the_form_lets_through_ends_with_its_near_miss(
    running_stack: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.run("digits", {"train.fit.epoch": 3}) == 2
    said = capsys.readouterr().out
    assert "check failed: the settings do not hold" in said
    assert "did you mean 'epochs'?" in said
    assert "train not run" in said
