import json
from types import SimpleNamespace

import numpy as np
import pytest
from load_toys import CURVE, result

from pipeline.errors import FlyweightError
from pipeline.serving.load import sweep
from pipeline.serving.load.result import Closed, Open


@pytest.fixture
def found():
    loads = [Closed(1), Closed(4), Closed(16), Closed(64)]
    answers = {load: result(load, *point) for load, point in zip(loads, CURVE, strict=True)}
    return sweep.sweep(loads, lambda load, watch: answers[load])


def test_loads_are_measured_in_order_and_the_knee_is_found(found):
    assert [one.load.concurrency for one in found.results] == [1, 4, 16, 64]
    assert found.knee == 1


def test_progress_goes_on_within_a_load_and_over_all(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_PROGRESS", str(tmp_path / "progress"))

    def measure(load, watch):
        watch(0.5)
        watch(1.0)
        return result(load, 10.0, 1.0)

    sweep.sweep([Open(10.0), Open(20.0)], measure)
    events = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert [event["done"] for event in events] == [0.5, 0.99, 1, 1.5, 1.99, 2]
    assert {event["total"] for event in events} == {2}
    assert events[2]["metrics"] == {"throughput": 10.0, "p99_ms": 3.0}


def test_json_is_plain_and_what_is_infinite_is_null(found, tmp_path):
    infinite = float("inf")
    nothing = result(Open(5.0, "constant"), 0.0, infinite, errors={"UNAVAILABLE": 15}, failures=15)
    sweep.write_json(sweep.Sweep((*found.results, nothing), found.knee), tmp_path / "load.json")
    written = json.loads((tmp_path / "load.json").read_text(), parse_constant=pytest.fail)
    assert written["knee"] == 1
    first, *_, last = written["loads"]
    assert first["load"] == {"kind": "closed", "concurrency": 1}
    assert first["server"]["batches"] == {"2": 10}
    assert last["load"] == {"kind": "open", "rate": 5.0, "arrivals": "constant", "seed": 17}
    assert (last["p99_ms"], last["errors"]) == (None, {"UNAVAILABLE": 15})


def metadata(*shapes):
    tensors = [SimpleNamespace(name=f"x{place}", datatype="UINT8", shape=shape) for place, shape in enumerate(shapes)]
    return SimpleNamespace(name="proxy", inputs=tensors)


def test_images_go_to_the_model_that_takes_them():
    images = np.zeros((5, 1, 8, 8), np.uint8)
    assert sweep.inputs_of(metadata([-1, 1, 8, 8]), images) == {"x0": images}
    assert sweep.inputs_of(metadata([-1, -1, -1, 8]), images) == {"x0": images}
    assert sweep.inputs_of(metadata([-1, 1, 8, 8]), None)["x0"].shape == (1, 1, 8, 8)


@pytest.mark.parametrize("shapes", [([-1, 1, 28, 28],), ([-1, 1, 8, 8], [-1, 2]), ([-1, 64],)])
def test_images_that_a_model_does_not_take_are_refused(shapes):
    message = r"proxy takes \[-1, .* the data set's images are \[1, 8, 8\]: leave --images out to send zeros"
    with pytest.raises(FlyweightError, match=message):
        sweep.inputs_of(metadata(*shapes), np.zeros((5, 1, 8, 8), np.uint8))


def test_a_server_that_is_not_there_says_how_to_start_one():
    with pytest.raises(
        ConnectionError, match=r"no Triton answers at 127\.0\.0\.1:9: start it with `flyweight up triton`"
    ):
        sweep.served("proxy", "127.0.0.1:9")
