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
        assert speed.ratio == pytest.approx(speed.int8_images_per_second / speed.float_images_per_second)
    assert all(speed.ratio > 0 for speed in found.speed.values())
    assert found.cpu == cpu.describe()
    assert type(found).model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(("int8_p50", "faster"), [(1.0, True), (2.0, False), (4.0, False)])
def test_int8_is_faster_where_its_time_at_the_largest_batch_is_less(files, images, monkeypatch, int8_p50, faster):
    def timed(runners, images, batch, seconds, clock):
        """Float takes 2 seconds; int8 is slow except at the largest batch."""
        took = {"float": 2.0, "int8": int8_p50 if batch == BATCHES[-1] else 8.0}
        assert set(runners) == set(took) and clock is time.thread_time
        return {
            name: Offline(images_per_second=batch / p50, p50_ms=1e3 * p50, p99_ms=1e3 * p50, calls=1)
            for name, p50 in took.items()
        }

    monkeypatch.setattr(proof, "time_runners", timed)
    found = prove(*files, images)
    assert found.faster is faster
    assert {batch: speed.ratio for batch, speed in found.speed.items()} == {1: 0.25, 32: 0.25, 64: 2.0 / int8_p50}
    words = "int8 is faster than float here" if faster else "int8 is not faster than float here"
    assert found.sentence.startswith(words) and ("Serve the float candidate." in found.sentence) is not faster


def test_agreement_is_the_share_of_equal_predictions(files, images):
    answers = [OnnxRunner(file)({"image": images})["logits"].argmax(1) for file in files]
    assert prove(*files, images, seconds=0.02).agreement == (answers[0] == answers[1]).mean() > 0.5
    assert prove(files[0], files[0], images, seconds=0.02).agreement == 1


@pytest.mark.parametrize(
    ("ratios", "faster", "sentence"),
    [
        (
            (0.9, 2.8, 2.9),
            True,
            r"int8 is faster than float here: 0\.90x at batch 1, 2\.80x at batch 32, 2\.90x at batch 64, on one thread of "
            r".*; 10 operators run as integers, 0 as float\.$",
        ),
        (
            (1.2, 1.1, 0.77),
            False,
            r"int8 is not faster than float here: .* 0\.77x at batch 64.*Serve the float candidate",
        ),
        ((1.0, 1.0, 1.0), False, "int8 is not faster than float here"),
    ],
)
def test_one_sentence_says_whether_it_pays(ratios, faster, sentence, files, images, monkeypatch):
    left = iter(ratios)

    def timed(runners, images, batch, seconds, clock):
        speeds = {"float": 100.0, "int8": 100.0 * next(left)}
        return {name: Offline(images_per_second=speeds[name], p50_ms=1, p99_ms=1, calls=1) for name in runners}

    monkeypatch.setattr(proof, "time_runners", timed)
    found = prove(*files, images)
    assert found.faster is faster
    assert re.match(sentence, found.sentence)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        count_operators(tmp_path / "model.onnx")
