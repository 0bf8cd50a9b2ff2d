"""The plan is read from the quantized graph: what rounds by it answers as that graph, before and after training."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_answers import logits
from torch import nn

from pipeline.compression.quantization import fake_quant, quant_plan
from pipeline.compression.quantization.fake_quant import Levels, WeightGrid
from pipeline.compression.quantization.quantizers.static import Static
from pipeline.errors import ModelError
from pipeline.export import onnx_graph
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier


def learned_network(stds):
    """A small residual network, folded, whose batch norms had seen images; its spec; raw images like those."""
    spec = image_classifier(
        "resnet", {"width": 8, "blocks": [1, 1]}, (len(stds), 8, 8), tuple("abcd"),
        Preprocessing(mean=(0.4,) * len(stds), std=stds),
    )  # fmt: skip
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (96, *spec.image_shape), dtype=np.uint8)
    network = checkpoint.build(spec)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        for _ in range(20):
            network(checkpoint.normalise(spec, torch.tensor(images)))
    return *fake_quant.fold(spec, network), images


@pytest.fixture(scope="module")
def learned():
    return learned_network((0.35,))


@pytest.fixture(scope="module")
def written(learned, tmp_path_factory):
    """Returns a function from (target, fold) to the (float, int8) files of the learned network."""
    spec, network, images = learned
    directory = tmp_path_factory.mktemp("written")
    onnx_graph.export(spec, network, directory / "float.onnx")

    def write(target, fold="off"):
        file = directory / f"{target}_{fold}.onnx"
        if not file.exists():
            Static(fold=fold)(directory / "float.onnx", images, file, target)
        return directory / "float.onnx", file

    return write


@pytest.mark.parametrize("reduce_range", [pytest.param(False, marks=pytest.mark.extra), True])
def test_weights_are_rounded_as_the_quantizer_writes_them(learned, written, tmp_path, reduce_range):
    spec, network, images = learned
    float_file, int8_file = written("cpu")[0], tmp_path / "int8.onnx"
    Static(fold="off", reduce_range=reduce_range)(float_file, images, int8_file, "cpu")
    plan = quant_plan.plan(spec, network, float_file, int8_file, images)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(int8_file).graph.initializer}
    parameters = dict(network.named_parameters())
    assert set(plan.weights) == {name for name, parameter in parameters.items() if parameter.ndim > 1}
    for name, levels in plan.weights.items():
        assert levels == Levels(count=64 if reduce_range else 127, axis=0)
        scale = constants[f"{name}_scale"].reshape(-1, *[1] * (parameters[name].ndim - 1))
        rounded = WeightGrid(levels)(parameters[name]).detach().numpy()
        np.testing.assert_array_equal(rounded, constants[f"{name}_quantized"] * scale)


@pytest.mark.parametrize(("target", "fold"), [("cpu", "off"), ("cpu", "on"), ("tensorrt", "off")])
def test_a_simulated_network_answers_as_the_quantized_one(learned, written, target, fold, caplog):
    spec, network, images = learned
    files = written(target, fold)
    plan = quant_plan.plan(spec, network, *files, images)
    assert "without a counterpart" not in caplog.text
    simulated = fake_quant.simulate(spec, network, plan).eval()
    with torch.no_grad():
        view = checkpoint.normalise(spec, torch.tensor(images))
        ours, unrounded = simulated(view).numpy(), network(view).numpy()
    theirs = logits(files[1], images)
    # Biases are whole numbers in the file, a hundredth of a step off. Sums in another order fall on the other side of a
    # tie now and then, which one step more or less then follows from.
    assert (np.abs(ours - theirs).max(1) < 3e-5).mean() > 0.3
    assert np.abs(ours - theirs).mean() < 0.5 * np.abs(theirs - unrounded).mean()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.98


def test_it_rounds_at_the_tensors_of_the_quantized_graph_and_no_others(learned, written):
    spec, network, images = learned
    files = written("cpu")
    plan = quant_plan.plan(spec, network, *files, images)
    pairs = {node.input[0] for node in onnx.load(files[1]).graph.node if node.op_type == "QuantizeLinear"}
    named = [tensor for grid in plan.grids for tensor in grid.tensors]
    assert set(named) == pairs | {"normalised"} and len(named) == len(set(named))
    assert [grid.tensors for grid in plan.grids if not grid.learned] == [("normalised",)]
    shared = [grid.tensors for grid in plan.grids if len(grid.tensors) > 1]
    assert shared == [("mean", "view")], "what only changes its shape keeps its grid"
    placed = [node for grid in plan.grids for node in grid.nodes]
    assert sum(node.startswith("relu") for node in placed) == 5 and sum(node.startswith("conv") for node in placed) == 3
    assert not any(node.startswith("add") for node in placed), "an addition is rounded behind its ReLU"


@pytest.mark.extra
@pytest.mark.integration
def test_an_image_whose_channels_are_scaled_apart_is_rounded_too(tmp_path):
    spec, network, images = learned_network((0.2, 0.3))
    files = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx_graph.export(spec, network, files[0])
    Static(fold="off")(files[0], images, files[1], "cpu")
    plan = quant_plan.plan(spec, network, *files, images)
    (image,) = [grid for grid in plan.grids if "normalised" in grid.tensors]
    assert image.nodes == ("x",) and not image.learned
    with torch.no_grad():
        ours = fake_quant.simulate(spec, network, plan).eval()(checkpoint.normalise(spec, torch.tensor(images)))
    assert (ours.numpy().argmax(1) == logits(files[1], images).argmax(1)).mean() > 0.98


@pytest.mark.integration
def test_what_was_learned_reaches_the_quantized_graph(learned, written, tmp_path):
    """Weights and ranges: written again, it answers as the trained simulation does."""
    spec, network, images = learned
    plan = quant_plan.plan(spec, network, *written("cpu"), images)
    simulated = fake_quant.simulate(spec, copy.deepcopy(network), plan).eval()
    with torch.no_grad():
        for parameter in simulated.parameters():
            if parameter.requires_grad:
                parameter *= 0.8 if parameter.ndim == 0 else 1 + 0.1 * torch.randn(parameter.shape)
        ours = simulated(checkpoint.normalise(spec, torch.tensor(images))).numpy()
    network = fake_quant.trained(simulated, copy.deepcopy(network))
    files = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    ranges = fake_quant.ranges(simulated)
    onnx_graph.export(spec, network, files[0], metadata={quant_plan.RANGES_KEY: json.dumps(ranges)})
    Static(fold="off")(files[0], images, files[1], "cpu")
    model = onnx.load(files[1])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for grid in (grid for grid in plan.grids if grid.learned):
        assert constants[f"{grid.tensors[0]}_scale"] == pytest.approx(0.8 * grid.scale, rel=1e-5)
        assert constants[f"{grid.tensors[0]}_zero_point"] == grid.zero_point
    assert quant_plan.RANGES_KEY not in {entry.key for entry in model.metadata_props}
    theirs = logits(files[1], images)
    again = quant_plan.plan(spec, network, *files, images)
    with torch.no_grad():
        view = checkpoint.normalise(spec, torch.tensor(images))
        same = fake_quant.simulate(spec, copy.deepcopy(network), again).eval()(view).numpy()
        unrounded = network(view).numpy()
    np.testing.assert_allclose(same, ours, atol=0.1 * np.abs(ours - unrounded).mean())
    assert np.abs(ours - theirs).mean() < 0.1 * np.abs(theirs - unrounded).mean()


def test_a_float_graph_that_was_not_trained_so_has_no_ranges(written):
    model = onnx.load(written("cpu")[0])
    before = model.SerializeToString()
    assert quant_plan.take_ranges(model) == {} and model.SerializeToString() == before


def test_a_quantizer_that_fixes_no_ranges_is_refused(learned, written):
    spec, network, images = learned
    float_file, _ = written("cpu")
    with pytest.raises(
        ModelError, match=r"fixes no ranges.*set quantize\.fit\.epochs to 0, or the quantizer to static"
    ):
        quant_plan.plan(spec, network, float_file, float_file, images)


def test_what_has_no_counterpart_is_named_and_stays_float(learned, written, tmp_path, caplog):
    spec, network, images = learned
    float_file, int8_file = written("cpu")
    model = onnx.load(int8_file)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == "relu":
            node.input[0] = "unknown"
    onnx.save(model, tmp_path / "other.onnx")
    plan = quant_plan.plan(spec, network, float_file, tmp_path / "other.onnx", images)
    assert "without a counterpart in PyTorch, and float while training: unknown" in caplog.text
    assert not [grid for grid in plan.grids if {"relu", "unknown"} & set(grid.tensors)]
