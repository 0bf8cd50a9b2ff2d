"""What goes wrong while the DAG runs: a killed training goes on, damaged data stops it, and what serves stays."""

from __future__ import annotations

import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from pipeline import config, demo, evidence, handover, places
from pipeline.serving.client import Client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

EPOCHS = 30
QUICK = {"train.fit.epochs": EPOCHS, "distill.fit.epochs": 3, "prune.fit.epochs": 1, "budget.accuracy_drop": 0.9}


def _run(overrides: dict) -> tuple[int, str]:
    """Run the DAG on digits as the demo does; return its exit code and what it said."""
    said = io.StringIO()
    code = demo.run("digits", overrides, console=Console(file=said, width=200))
    return code, said.getvalue()


def _trainers() -> list[psutil.Process]:
    """The processes that train for our stack."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "pipeline.distributed.worker" in (process.info["cmdline"] or []):
            try:
                ours = process.environ().get("FLYWEIGHT_HOME") == str(places.home())
            except psutil.Error:
                continue
            found += [process] if ours else []
    return found


def test_a_killed_training_resumes_from_its_checkpoint_and_leaves_no_ghost(running_stack: None) -> None:
    outcome: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: outcome.append(_run(QUICK)))
    thread.start()
    deadline = time.monotonic() + 240
    while not list(places.home().glob("work/*/scratch/**/snapshot*.safetensors")):
        assert time.monotonic() < deadline and thread.is_alive(), "no checkpoint was written"
        time.sleep(0.1)
    victims = _trainers()
    assert victims
    os.kill(victims[0].pid, signal.SIGKILL)
    thread.join()

    code, said = outcome[0]
    assert code == 0, said
    found = evidence.gather("latest")
    epochs = [entry["epoch"] for entry in found["history"]["train"]]
    assert epochs == list(range(1, EPOCHS + 1))
    parents = handover.search_runs(
        f"tags.`{handover.TAG}pipeline` = '{found['pipeline']}' and tags.`{handover.TAG}kind` = 'pipeline'"
    )
    assert len(parents) == 1
    trainings = handover.search_runs(
        f"tags.`mlflow.parentRunId` = '{found['parent_run_id']}' and tags.`{handover.TAG}stage` = 'train'"
    )
    assert [run["info"]["status"] for run in trainings] == ["FINISHED"]
    tags = handover.tags_of(trainings[0])
    assert tags["airflow.try_number"] == "2"
    assert f"{handover.TAG}interrupted" in tags  # the first attempt was noted, and opened again
    assert handover.search_runs("attributes.status = 'RUNNING'") == []
    assert _trainers() == []


@pytest.fixture
def damaged_shard() -> Iterator[Path]:
    """A training shard of the digits that has lost its end; whole again afterwards."""
    shard = next((config.ROOT / "data" / "digits" / "train").glob("*.arrow"))
    whole = shard.with_suffix(".whole")
    shutil.copy2(shard, whole)
    try:
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size // 2)
        yield shard
    finally:
        whole.replace(shard)


def test_damaged_data_stops_the_dag_and_what_serves_stays(running_stack: None, damaged_shard: Path) -> None:
    image = np.zeros((1, 1, 8, 8), np.uint8)
    with Client() as client:
        before = client.attested("proxy") if client.ready("proxy") else None
        code, said = _run(QUICK)
        assert code == 2
        assert damaged_shard.name in said
        assert "train not run" in said
        after = client.attested("proxy") if client.ready("proxy") else None
        assert after == before
        if before:
            assert client.predict("proxy", image).shape == (1, 10)
    assert {stage["stage"]: stage["status"] for stage in evidence.gather("latest")["stages"]}["promote"] == "not run"
