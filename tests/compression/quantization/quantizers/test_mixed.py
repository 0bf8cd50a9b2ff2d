"""Accuracy-aware quantization: the layer that was made hard for int8 is the one that goes back to float."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import tensor
from torch.nn import functional as F

from pipeline import components
from pipeline.compression.quantization.quantizers.mixed import Mixed, drift
from pipeline.compression.quantization.quantizers.static import Static
from pipeline.errors import ModelError, SettingsError
from pipeline.runners.onnx_runner import OnnxRunner


def test_drift_is_what_pytorch_says():
    chance = np.random.default_rng(0)
    one, other = (chance.normal(size=(50, 4)).astype(np.float32) for _ in range(2))
    found = drift(one, other)
    expected = F.kl_div(
        F.log_softmax(tensor(other), 1), F.log_softmax(tensor(one), 1), reduction="batchmean", log_target=True
    )
    assert found.divergence == pytest.approx(float(expected), rel=1e-5)
    assert found.disagreement == (one.argmax(1) != other.argmax(1)).mean()
    assert drift(one, one).divergence == 0


@pytest.fixture(scope="module")
def hard(float_file, tmp_path_factory):
    """(file, two convolutions): one channel between them is 1000 times as large, and the answers are the same."""
    model = onnx.load(float_file)
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    takers = {node.name: [other for other in graph.node if node.output[0] in other.input] for node in graph.node}
    first, second = next(
        (node, takers[takers[node.name][0].name][0])
        for node in graph.node
        if node.op_type == "Conv" and [n.op_type for n in takers[node.name]] == ["Relu"]
        and [n.op_type for n in takers[takers[node.name][0].name]] == ["Conv"]
    )  # fmt: skip
    for name, index in [(first.input[1], np.s_[0]), (first.input[2], np.s_[0]), (second.input[1], np.s_[:, 0])]:
        values = numpy_helper.to_array(constants[name]).copy()
        values[index] *= 1e-3 if name == second.input[1] else 1e3
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
    file = tmp_path_factory.mktemp("hard") / "model.onnx"
    onnx.save(model, file)
    return file, (first.name, second.name)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_the_layers_that_suffer_go_back_to_float(target, hard, digits, tmp_path):
    file, (maker, taker) = hard
    # The tensor between them is rounded where it is taken; for cpu also where it is made.
    names = {maker, taker} if target == "cpu" else {taker}
    counted = Mixed(max_disagreement=0.02)(file, digits[0][:400], tmp_path / "model.onnx", target)
    record = json.loads((tmp_path / "mixed.json").read_text())
    assert counted["int8_disagreement"] > 0.02 >= counted["disagreement"]
    assert names <= set(record["float_layers"])
    assert len(names) <= counted["float_layers"] == len(record["float_layers"]) <= len(names) + 2
    in_float = {n.name for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "Conv"}
    assert names <= in_float
    if target == "cpu":
        assert counted["float_ops_left"] >= len(names)  # in the graph that runs
    images = digits[0][400:]
    expected = OnnxRunner(file)({"image": images})["logits"].argmax(1)
    assert (OnnxRunner(tmp_path / "model.onnx")({"image": images})["logits"].argmax(1) == expected).mean() > 0.95


def test_the_record_says_what_each_layer_costs(hard, digits, tmp_path):
    Mixed(max_disagreement=0.02)(hard[0], digits[0][:400], tmp_path / "model.onnx", "cpu")
    record = json.loads((tmp_path / "mixed.json").read_text())
    assert record["held_out_images"] == 100
    costs = [row["divergence"] for row in record["ranking"]]
    assert costs == sorted(costs, reverse=True)
    assert {row["operator"] for row in record["ranking"]} >= {"Conv", "Gemm", "Add"}
    assert {"head.weight", "blocks.0.conv1.weight", None} <= {row["weights"] for row in record["ranking"]}
    assert record["float_layers"] == [row["layer"] for row in record["ranking"]][: len(record["float_layers"])]


def test_inside_the_budget_it_is_static_quantization(float_file, digits, tmp_path):
    counted = Mixed(max_disagreement=1.0)(float_file, digits[0][:400], tmp_path / "model.onnx", "cpu")
    Static()(float_file, digits[0][:300], tmp_path / "static.onnx", "cpu")
    assert counted["float_layers"] == counted["float_ops_left"] == 0
    mixed, static = (
        OnnxRunner(tmp_path / f"{name}.onnx")({"image": digits[0]})["logits"] for name in ("model", "static")
    )
    np.testing.assert_array_equal(mixed, static)
    assert json.loads((tmp_path / "mixed.json").read_text())["ranking"] == []


def test_a_budget_that_no_layer_meets_is_refused(hard, digits, tmp_path, monkeypatch):
    from pipeline.compression.quantization.quantizers import mixed

    monkeypatch.setattr(mixed, "drift", lambda *_: mixed.Drift(0.5, 1.0))
    with pytest.raises(
        ModelError, match=r"max_disagreement is 0\.01, and even with one layer of \d+ in int8 50\.00% of the held-out"
    ):
        Mixed()(hard[0], digits[0][:40], tmp_path / "model.onnx", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_to_hold_any_out_are_refused(float_file, digits, tmp_path):
    with pytest.raises(ModelError, match=r"there are 3: set quantize\.calibration_images to at least 4"):
        Mixed()(float_file, digits[0][:3], tmp_path / "model.onnx", "cpu")


def test_a_budget_above_one_is_refused():
    with pytest.raises(SettingsError, match=r"quantizers\.mixed: max_disagreement is 1\.5: .*less than or equal to 1"):
        components.build("quantizers", "mixed", {"max_disagreement": 1.5})
