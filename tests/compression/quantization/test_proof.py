"""The int8 proof on a small network: what is counted, what is timed, and what is said when int8 does not pay."""

import re
import time

import numpy as np
import pytest
import torch

from pipeline.compression.quantization import proof
from pipeline.compression.quantization.proof import BATCHES, count_operators, prove
from pipeline.compression.quantization.quantizers.static import Static
from pipeline.errors import ModelError
from pipeline.export import onnx_graph
from pipeline.machine import cpu
from pipeline.models.checkpoint import build
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.records.measures import Offline
from pipeline.runners.onnx_runner import OnnxRunner


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(images, tmp_path_factory):
    """(float, int8)"""
    directory = tmp_path_factory.mktemp("proof")
    preprocessing = Preprocessing(mean=(0.5,), std=(0.25,))
    spec = image_classifier("resnet", {"width": 8, "blocks": [1, 1]}, (1, 8, 8), tuple("abc"), preprocessing)
    torch.manual_seed(0)
    onnx_graph.export(spec, build(spec).eval(), directory / "float.onnx")
    Static()(directory / "float.onnx", images, directory / "int8.onnx", "cpu")
    return directory / "float.onnx", directory / "int8.onnx"


def test_operators_are_counted_in_the_graph_that_runs(files):
    float_file, int8_file = map(count_operators, files)
    assert float_file["fused_integer_ops"] == 0
    assert float_file["float_ops_left"] >= 10  # 6 convolutions, 2 additions, the pooling and the linear layer
    assert (int8_file["fused_integer_ops"], int8_file["float_ops_left"]) == (10, 0)


def test_the_proof_holds_what_was_counted_and_timed_and_where(files, images):
    found = prove(*files, images, seconds=0.02)
    assert (found.fused_integer_ops, found.float_ops_left) == (10, 0)
    assert list(found.speed) == [1, 32, 64]
    for speed in found.speed.values():
        assert 0 < speed.interval.low <= speed.ratio <= speed.interval.high
        assert speed.ratio == pytest.approx(speed.int8_images_per_second / speed.float_images_per_second, rel=0.5)
    assert found.cpu == cpu.describe()
    assert type(found).model_validate_json(found.model_dump_json()) == found


def offline(batch, speed, noise=0.0):
    """Seven turns at about `speed` images a second."""
    turns = tuple(speed * (1 + noise * (-1) ** turn) for turn in range(7))
    return Offline(
        images_per_second=speed, turns=turns, p50_ms=1e3 * batch / speed, p99_ms=1e3 * batch / speed, calls=7
    )


@pytest.mark.parametrize(("int8_speed", "pace"), [(200.0, "faster"), (100.0, "as fast"), (50.0, "slower")])
def test_int8_is_faster_where_its_time_at_the_largest_batch_is_less(files, images, monkeypatch, int8_speed, pace):
    def timed(runners, images, batch, seconds, clock):
        """int8 is slow except at the largest batch."""
        speeds = {"float": 100.0, "int8": int8_speed if batch == BATCHES[-1] else 25.0}
        assert set(runners) == set(speeds) and clock is time.thread_time
        return {name: offline(batch, speed) for name, speed in speeds.items()}

    monkeypatch.setattr(proof, "time_runners", timed)
    found = prove(*files, images)
    assert found.pace == pace
    ratios = {batch: speed.ratio for batch, speed in found.speed.items()}
    assert ratios == pytest.approx({1: 0.25, 32: 0.25, 64: int8_speed / 100})


@pytest.mark.parametrize("int8_speed", [97.0, 103.0])
def test_what_noise_explains_makes_int8_neither_faster_nor_slower(files, images, monkeypatch, int8_speed):
    def timed(runners, images, batch, seconds, clock):
        return {"float": offline(batch, 100.0, -0.1), "int8": offline(batch, int8_speed, 0.1)}

    monkeypatch.setattr(proof, "time_runners", timed)
    found = prove(*files, images)
    assert found.speed[64].interval.low < 1 < found.speed[64].interval.high
    assert found.pace == "as fast" and "Serve the float candidate" not in found.sentence


def test_agreement_is_the_share_of_equal_predictions(files, images):
    answers = [OnnxRunner(file)({"image": images})["logits"].argmax(1) for file in files]
    assert prove(*files, images, seconds=0.02).agreement == (answers[0] == answers[1]).mean() > 0.5
    assert prove(files[0], files[0], images, seconds=0.02).agreement == 1


@pytest.mark.parametrize(
    ("ratios", "pace", "sentence"),
    [
        (
            (0.9, 2.8, 2.9),
            "faster",
            r"int8 is faster than float here: 0\.90x at batch 1, 2\.80x at batch 32, 2\.90x at batch 64, on one thread of "
            r".*; 10 operators run as integers, 0 as float\.$",
        ),
        (
            (1.2, 1.1, 0.77),
            "slower",
            r"int8 is slower than float here: .* 0\.77x at batch 64.*Serve the float candidate",
        ),
        ((1.0, 1.0, 1.0), "as fast", "int8 is as fast as float here, within what chance explains"),
    ],
)
def test_one_sentence_says_whether_it_pays(ratios, pace, sentence, files, images, monkeypatch):
    left = iter(ratios)

    def timed(runners, images, batch, seconds, clock):
        speeds = {"float": 100.0, "int8": 100.0 * next(left)}
        return {name: offline(batch, speed) for name, speed in speeds.items()}

    monkeypatch.setattr(proof, "time_runners", timed)
    found = prove(*files, images)
    assert found.pace == pace
    assert re.match(sentence, found.sentence)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        count_operators(tmp_path / "model.onnx")
