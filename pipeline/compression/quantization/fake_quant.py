"""Quantization-aware training: a network answers as its integer graph will while it learns.

On the way forward, weights and activations are rounded to the values that 8 bits can hold; on the way back the rounding
is passed over (Jacob et al., https://arxiv.org/abs/1712.05877). The step of each activation's grid is learned beside the
weights (Esser et al., "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153); its zero point stays.

Where to round, and to which grid at first, `quant_plan` reads from the graph that a quantizer wrote of the same
network. So training begins with the very model that quantization without training ends with.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, fx, nn

from pipeline.errors import ModelError
from pipeline.files import write_json
from pipeline.models import surgery
from pipeline.models.spec import ModelSpec

RANGES_FILE = "ranges.json"
"""Beside a trained checkpoint: tensor of its ONNX graph -> the (lowest, highest) value that it was trained to hold."""
_GRIDS, _WEIGHTS = "activation_grids", "weight_grids"


class Grid(BaseModel):
    """What activations are rounded to: ``(q - zero_point) * scale`` for every whole q from `low` to `high`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: tuple[str, ...]
    """Names in the ONNX graph of the tensors that share it."""
    nodes: tuple[str, ...]
    """Names of the same in the traced PyTorch network."""
    scale: float
    zero_point: int
    low: int
    high: int
    learned: bool
    """Whether training may change the scale. That of the image is given by its pixels."""


class Levels(BaseModel):
    """What a weight is rounded to: `count` even steps on either side of zero, the last of which is the largest weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    axis: int | None
    """The axis of its channels, each of which has a scale of its own; None is one scale for all."""


class FakeQuant(BaseModel):
    """All that must be rounded in a network so that it answers as its integer graph does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grids: tuple[Grid, ...]
    weights: dict[str, Levels]
    """By the names of the parameters."""


class _Round(torch.autograd.Function):
    """Round as ONNX's QuantizeLinear and DequantizeLinear do: half to even, then saturate."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ratio: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
        """(...) float32 -> the same shape, on the grid whose scale is ``ratio * scale``."""
        step = ratio * scale
        whole = torch.round(values / step) + zero_point
        inside = (whole >= low) & (whole <= high)
        rounded = (whole.clamp(low, high) - zero_point) * step
        ctx.save_for_backward(values, rounded, inside, step)
        ctx.scale, ctx.levels = scale, high - low
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        """LSQ, equations 3 and 5, and its gradient scale ``1 / sqrt(features * levels)``.

        The division by the scale that training began with makes SGD move ``ratio * scale`` as it would move LSQ's step.
        """
        values, rounded, inside, step = ctx.saved_tensors
        (gradient,) = gradients
        pull = (gradient * torch.where(inside, rounded - values, rounded)).sum() / step
        features = values.numel() / max(1, len(values))
        return gradient * inside, pull / (math.sqrt(features * ctx.levels) * ctx.scale), None, None, None, None


class ActivationGrid(nn.Module):
    """Round activations to `grid`, whose scale is learned where it may be."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.ratio = nn.Parameter(torch.ones(()), requires_grad=grid.learned)

    def forward(self, values: Tensor) -> Tensor:
        """(N, ...) float -> the same shape, float32."""
        grid = self.grid
        rounded: Tensor = _Round.apply(values.float(), self.ratio, grid.scale, grid.zero_point, grid.low, grid.high)
        return rounded

    @property
    def range(self) -> tuple[float, float]:
        """The (lowest, highest) value that the grid holds; of a symmetric one without its odd lowest integer."""
        grid = self.grid
        low = -grid.high if grid.low < 0 else grid.low
        scale = self.ratio.item() * grid.scale
        return (low - grid.zero_point) * scale, (grid.high - grid.zero_point) * scale


class WeightGrid(nn.Module):
    """Round a weight to `levels`."""

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, weight: Tensor) -> Tensor:
        """(...) float32 -> the same shape; the gradient passes unchanged, as nothing lies outside the grid."""
        fixed, count = weight.detach(), self.levels.count
        others = [axis for axis in range(fixed.ndim) if axis != self.levels.axis]
        scale = (fixed.abs().amax(others, keepdim=True).double() / count).float()
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
        rounded = torch.round(fixed / scale).clamp(-count, count) * scale
        return rounded + (weight - fixed)


class Rounding:
    """The `Rewrite` of a training with quantization: `simulate` before, `trained` and `ranges` behind."""

    def __init__(self, plan: dict[str, Any]) -> None:
        """`plan` is a `FakeQuant` as JSON."""
        self.plan = FakeQuant.model_validate(plan)

    def apply(self, spec: ModelSpec, network: nn.Module) -> nn.Module:
        """Return `network` with everything rounded that the plan names."""
        self._plain = copy.deepcopy(network)
        return simulate(spec, network, self.plan)

    def after_step(self, network: nn.Module) -> None:
        """Nothing: the weights are kept in float."""

    def files(self, network: nn.Module, out: Path) -> None:
        """Write `RANGES_FILE`."""
        write_json(out / RANGES_FILE, ranges(network))

    def restore(self, network: nn.Module) -> nn.Module:
        """Return the network that is not rounded, on the CPU."""
        return trained(network.cpu(), self._plain)


def fold(spec: ModelSpec, network: nn.Module) -> tuple[ModelSpec, nn.Module]:
    """Fold, in place, every batch norm into the convolution before it; return the spec that rebuilds that, and `network`.

    A batch norm behind anything else stays. Raises `ModelError` where the network does not answer as before.
    """
    batch_norms = _batch_norms(spec, network.eval())
    images = torch.randn(2, *spec.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(images)
        surgery.fold_(network, batch_norms)
        after = network(images)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise ModelError(
            f"{spec.architecture}: its batch norms cannot be folded into its convolutions, as it uses the outputs of the "
            f"convolutions elsewhere too. Training with quantization needs that: set quantize.fit.epochs to 0."
        )
    return spec.model_copy(update={"folded": {**spec.folded, **batch_norms}}), network


def simulate(spec: ModelSpec, network: nn.Module, fake_quant: FakeQuant) -> nn.Module:
    """Return `network`, traced as in evaluation, with everything rounded that `fake_quant` names.

    Its parameters have the names that they had; see `trained` for the way back. Dropout is gone, and the statistics of
    batch norms that were not folded stay as they are.
    """
    traced = trace(spec, network)
    nodes = {node.name: node for node in traced.graph.nodes}
    parameters = {node.target: node for node in traced.graph.nodes if node.op == "get_attr"}
    for place, grid in enumerate(fake_quant.grids):
        traced.add_submodule(f"{_GRIDS}.{place}", ActivationGrid(grid))
        for name in grid.nodes:
            _put_behind(nodes[name], f"{_GRIDS}.{place}")
    for place, (name, levels) in enumerate(fake_quant.weights.items()):
        traced.add_submodule(f"{_WEIGHTS}.{place}", WeightGrid(levels))
        _put_behind(parameters[name], f"{_WEIGHTS}.{place}")
    traced.recompile()
    return traced


def trace(spec: ModelSpec, network: nn.Module) -> fx.GraphModule:
    """Return `network` as a graph of operators for batches of any size."""
    example = torch.zeros(2, *spec.image_shape)
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    module = program.module(check_guards=False)
    return fx.GraphModule(module, module.graph)  # as torch returns it, it refuses train() and eval()


def trained(simulated: nn.Module, network: nn.Module) -> nn.Module:
    """Give `network`, in place, the weights that it learned as `simulated`; what the trace left out it keeps."""
    known = network.state_dict()
    learned = {name: tensor for name, tensor in simulated.state_dict().items() if name in known}
    network.load_state_dict({**known, **learned})
    return network


def ranges(simulated: nn.Module) -> dict[str, tuple[float, float]]:
    """Return, by the names of the ONNX graph, the ranges of the activations that were learned."""
    grids = [module for module in simulated.modules() if isinstance(module, ActivationGrid) and module.grid.learned]
    return {tensor: module.range for module in grids for tensor in module.grid.tensors}


def _batch_norms(spec: ModelSpec, network: nn.Module) -> dict[str, str]:
    """Return batch norm -> convolution, wherever the one takes the very tensor that the other gives."""
    given: list[tuple[Tensor, str]] = []
    found: dict[str, str] = {}

    def remember(name: str) -> Any:
        return lambda module, inputs, output: given.append((output, name))

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for tensor, convolution in given:
                if tensor is inputs[0]:
                    found[name] = convolution

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(remember(name)))
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(look(name)))
    try:
        with torch.no_grad():
            network(torch.zeros(2, *spec.image_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _put_behind(node: fx.Node, module: str) -> None:
    """Have everything that takes the output of `node` take it through `module`."""
    with node.graph.inserting_after(node):
        new = node.graph.call_module(module, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
