"""What `evaluate` has measured of real candidates through the live server, and what it leaves there."""

from __future__ import annotations

import pytest
from dag_runs import Ended

from pipeline.machine import places
from pipeline.serving.triton.client import Client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_the_live_server_answers_as_the_files_do_and_is_left_with_the_winner_alone(killed_once: Ended) -> None:
    measured = {one["name"]: one for one in killed_once.found["evaluation"]["candidates"]}
    assert {"teacher", "student", "pruned", "int8"} <= set(measured)
    assert not measured["int8_tensorrt"].get("served")  # its graph is not for this server
    for name in ("teacher", "student", "pruned", "int8"):
        parity = measured[name]["served_parity"]
        assert (parity["images"] > 0, parity["differing"]) == (True, 0)
        assert list(measured[name]["served"]) == ["16"]
        for load in measured[name]["served"].values():
            assert load["failures"] == 0
            assert load["requests"] > 0
            assert load["p50_ms"] <= load["p99_ms"]
    with Client() as client:
        assert [client.ready(f"proxy__eval_{name}") for name in measured] == [False] * len(measured)
        assert client.ready("proxy")
    assert [folder.name for folder in places.triton_repository().iterdir()] == ["proxy"]
