"""What goes wrong while the DAG runs: a killed training goes on, damaged data stops it, and what serves stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dag_runs import EPOCHS, Ended, run_dag, trainers

from pipeline.serving.triton.client import Client
from pipeline.tracking import rest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_killed_training_resumes_from_its_checkpoint_and_leaves_no_ghost(killed_once: Ended) -> None:
    assert killed_once.code == 0, killed_once.said
    found = killed_once.found
    epochs = [entry["epoch"] for entry in found["history"]["train"]]
    assert epochs == list(range(1, EPOCHS + 1))
    parents = rest.search_runs(
        f"tags.`{rest.TAG}pipeline` = '{found['pipeline']}' and tags.`{rest.TAG}kind` = 'pipeline'"
    )
    assert len(parents) == 1
    trainings = rest.search_runs(
        f"tags.`mlflow.parentRunId` = '{found['parent_run_id']}' and tags.`{rest.TAG}stage` = 'train'"
    )
    assert [run["info"]["status"] for run in trainings] == ["FINISHED"]
    tags = rest.tags_of(trainings[0])
    assert tags["airflow.try_number"] == "2"
    assert f"{rest.TAG}interrupted" in tags  # the first attempt was noted, and opened again
    assert rest.search_runs("attributes.status = 'RUNNING'") == []
    assert trainers() == []


@pytest.fixture
def damaged_shard(home: Path) -> Iterator[Path]:
    """A training shard of the workspace's digits that has lost its end; whole again afterwards."""
    shard = next((home / "workspace" / "data" / "digits" / "train").glob("*.arrow"))
    whole = shard.with_suffix(".whole")
    shutil.copy2(shard, whole)
    try:
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size // 2)
        yield shard
    finally:
        whole.replace(shard)


@pytest.mark.extra
def test_damaged_data_stops_the_dag_and_what_serves_stays(killed_once: Ended, damaged_shard: Path) -> None:
    image = np.zeros((1, 1, 8, 8), np.uint8)
    with Client() as client:
        before = client.attested("proxy")
        ended = run_dag()
        assert ended.code == 2
        assert damaged_shard.name in ended.said
        assert "train not run" in ended.said
        assert client.attested("proxy") == before
        assert client.predict("proxy", image).shape == (1, 10)
    assert {stage["stage"]: stage["status"] for stage in ended.found["stages"]}["promote"] == "not run"
