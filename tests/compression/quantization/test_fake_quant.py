"""Rounding is that of ONNX, gradients are those of the papers, and folding changes no answer."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.compression.quantization import fake_quant
from pipeline.compression.quantization.fake_quant import ActivationGrid, FakeQuant, Grid, Levels, WeightGrid
from pipeline.errors import ModelError
from pipeline.models import checkpoint, surgery
from pipeline.models.spec import Preprocessing, image_classifier

UNSIGNED = Grid(tensors=("x",), nodes=("x",), scale=0.05, zero_point=100, low=0, high=255, learned=True)
SIGNED = Grid(tensors=("x",), nodes=("x",), scale=0.05, zero_point=0, low=-128, high=127, learned=True)


@pytest.mark.parametrize(("grid", "dtype"), [(UNSIGNED, np.uint8), (SIGNED, np.int8)], ids=["uint8", "int8"])
def test_rounding_is_that_of_onnxruntime(grid, dtype):
    chance = np.random.default_rng(1)
    halves = (np.arange(-300, 300) + 0.5) * np.float32(grid.scale)
    values = np.concatenate([chance.normal(0, 8, 5000), halves, [0.0, 1e9, -1e9]]).astype(np.float32)
    scale, zero_point = (
        numpy_helper.from_array(np.array(value, kind), name)
        for name, value, kind in (("scale", grid.scale, np.float32), ("zero", grid.zero_point, dtype))
    )
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [scale, zero_point],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], {"x": values})
    found = ActivationGrid(grid)(torch.from_numpy(values)).detach().numpy()
    np.testing.assert_array_equal(found, expected)


def test_a_channel_of_zeros_stays_zero():
    weight = torch.tensor([[0.0, 0.0], [0.5, -1.0]])
    rounded = WeightGrid(Levels(count=127, axis=0))(weight)
    assert rounded[0].tolist() == [0.0, 0.0] and rounded[1].tolist() == pytest.approx([0.5, -1.0], abs=1 / 254)


def test_gradients_pass_where_values_are_inside_and_move_the_step_as_lsq_says():
    """Esser et al., equations 3 and 5, and section 2.2."""
    values = torch.tensor([[-6.0, -1.01, 0.02, 3.13, 9.0]], requires_grad=True)
    grid = ActivationGrid(UNSIGNED)
    gradient = torch.tensor([[0.3, -0.2, 0.5, 0.1, 0.7]])
    grid(values).backward(gradient)
    assert values.grad.tolist() == [[0.0, *gradient[0, 1:4].tolist(), 0.0]]
    scaled = values.detach().numpy().astype(np.float64) / 0.05
    slope = np.where(scaled < -100, -100, np.where(scaled > 155, 155, np.round(scaled) - scaled))
    pull = (gradient.numpy() * slope).sum() / np.sqrt(5 * 255)
    step = 0.05 * (1.0 - 0.1 * grid.ratio.grad.item())
    assert step == pytest.approx(0.05 - 0.1 * pull, rel=1e-5)


def test_the_gradient_of_a_weight_passes_unchanged():
    weight = torch.randn(3, 4, requires_grad=True)
    gradient = torch.randn(3, 4)
    WeightGrid(Levels(count=127, axis=0))(weight).backward(gradient)
    assert torch.equal(weight.grad, gradient)


def test_a_network_that_rounds_learns_like_any_other():
    spec = image_classifier(
        "training_toys:Plain", {}, (1, 8, 8), tuple("abc"), Preprocessing(mean=(0.4,), std=(0.3,))
    )  # fmt: skip
    network = checkpoint.build(spec)
    relu, image = Grid(**{**UNSIGNED.model_dump(), "nodes": ("relu",)}), {"nodes": ("x",), "learned": False}
    plan = FakeQuant(
        grids=(relu, UNSIGNED.model_copy(update=image)), weights={"conv.weight": Levels(count=127, axis=0)}
    )
    simulated = fake_quant.simulate(spec, copy.deepcopy(network), plan).to(memory_format=torch.channels_last)
    assert {name for name, _ in network.named_parameters()} <= {name for name, _ in simulated.named_parameters()}
    twin = copy.deepcopy(simulated).train()
    view = torch.randn(96, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    for batch in (1, 7, 96):
        assert torch.equal(twin(view[:batch]), simulated(view[:batch]))
    twin(view).square().sum().backward()
    still = [name for name, parameter in twin.named_parameters() if parameter.grad is None]
    assert still == [name for name, parameter in twin.named_parameters() if not parameter.requires_grad]
    assert len(still) == 1, "the scale of the image"


def test_what_was_learned_goes_back_into_a_plain_network():
    spec = image_classifier(
        "training_toys:Plain", {}, (1, 8, 8), tuple("abc"), Preprocessing(mean=(0.4,), std=(0.3,))
    )  # fmt: skip
    network, fresh = checkpoint.build(spec), checkpoint.build(spec)
    plan = FakeQuant(grids=(UNSIGNED.model_copy(update={"nodes": ("relu",)}),), weights={})
    simulated = fake_quant.simulate(spec, network, plan)
    before = fake_quant.ranges(simulated)
    with torch.no_grad():
        simulated.activation_grids.get_submodule("0").ratio *= 2
    assert before["x"] == pytest.approx((-5.0, 7.75))
    assert fake_quant.ranges(simulated)["x"] == pytest.approx((-10.0, 15.5))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(fake_quant.trained(simulated, fresh)(images), network(images))


def test_ranges_of_symmetric_grids_are_symmetric():
    assert ActivationGrid(SIGNED).range == pytest.approx((-6.35, 6.35))
    assert ActivationGrid(UNSIGNED).range == pytest.approx((-5.0, 7.75))


def test_a_folded_network_answers_as_before_and_comes_back_from_a_checkpoint(tmp_path):
    spec = image_classifier(
        "resnet", {"width": 4, "blocks": [1, 1]}, (1, 8, 8), tuple("ab"), Preprocessing(mean=(0.4,), std=(0.3,))
    )
    torch.manual_seed(0)
    network = checkpoint.build(spec)
    images = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        network(images)
        before = network.eval()(images)
    folded_spec, folded = fake_quant.fold(spec, network)
    torch.testing.assert_close(folded(images), before, rtol=1e-4, atol=1e-5)
    assert folded_spec.folded["blocks.1.shortcut.1"] == "blocks.1.shortcut.0" and len(folded_spec.folded) == 6
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(parameter.requires_grad for parameter in folded.parameters())
    checkpoint.save(tmp_path, folded_spec, folded)
    again_spec, again = checkpoint.load(tmp_path)
    assert again_spec == folded_spec and torch.equal(again(images), folded(images))
    assert fake_quant.fold(again_spec, again)[0] == folded_spec, "what is folded is not folded again"


class Twice(nn.Module):
    """Uses what its convolution gives behind the batch norm's back."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        given = self.conv(x)
        return (self.norm(given) * given).mean((2, 3))


def test_a_batch_norm_that_cannot_be_folded_is_refused():
    spec = image_classifier("mine:Twice", {}, (1, 8, 8), tuple("ab"), Preprocessing(mean=(0.4,), std=(0.3,)))
    network = Twice()
    network(torch.randn(8, 1, 8, 8) + 2)
    with pytest.raises(
        ModelError, match=r"mine:Twice: its batch norms cannot be folded.*set quantize\.fit\.epochs to 0"
    ):
        fake_quant.fold(spec, network)


def test_a_plan_that_folds_something_else_is_refused():
    with pytest.raises(ModelError, match="the plan folds '1', a ReLU, into '0', a Conv2d: only a BatchNorm2d can be"):
        surgery.fold_(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), {"1": "0"})
