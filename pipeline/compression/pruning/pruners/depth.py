"""Depth: whole blocks go, those first that change what passes through them the least.

A block that hands its input on nearly as it came is missed least (the "block influence" of Men et al., "ShortGPT",
https://arxiv.org/abs/2403.03853). There the change is one minus the cosine of input and output, since the norm that follows
takes scale away; batch norm in evaluation does not, so the change is measured here as the relative distance of the two.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models import surgery
from pipeline.models.spec import ModelSpec, PruningStep

_BATCHES = 4
_log = logging.getLogger(__name__)


class Depth:
    """Drops the blocks that change their input least; what went into them passes on as it is.

    A block is a module with layers and a forward of its own that stands in an `nn.Sequential` or `nn.ModuleList`, holds a
    convolution, and returns a tensor of the shape that it takes. Blocks inside blocks are not looked at.

    Args:
        drop: how many blocks go.
    """

    def __init__(self, drop: Annotated[int, Field(ge=1)]) -> None:
        self.drop = drop

    def rounds(self, count: int) -> list[Depth]:
        """Return `count` pruners that share the blocks to drop evenly, or one a block where these are fewer."""
        count = min(count, self.drop)
        each, more = divmod(self.drop, count)
        return [Depth(each + (place < more)) for place in range(count)]

    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Replace blocks of `network` in place by nothing, after a look at a few `batches`.

        Raises `ModelError` where fewer than `drop` blocks can go.
        """
        changes = _changes(network.eval(), [images for images, _ in itertools.islice(batches, _BATCHES)])
        if self.drop > len(changes):
            can = f"has only {len(changes)} that can go ({', '.join(changes)})" if changes else "has none that can go"
            raise ModelError(
                f"pruner.drop is {self.drop}, but {spec.architecture} {can}: a block in an nn.Sequential or nn.ModuleList, "
                f"with a convolution, whose output has the shape of its input; "
                + (f"lower drop to at most {len(changes)}" if changes else "prune by another method")
            )
        dropped = sorted(changes, key=lambda name: changes[name])[: self.drop]
        _log.info(
            "depth: relative change of the input by each block: %s; dropped: %s",
            ", ".join(f"{name} {change:.3f}" for name, change in changes.items()),
            ", ".join(dropped),
        )
        surgery.drop_(network, dropped)
        network.eval()  # what stands in their place is fresh
        return PruningStep(method="depth", arguments={"drop": self.drop}, dropped=tuple(dropped))


@torch.no_grad()
def _changes(network: nn.Module, images: list[Tensor]) -> dict[str, float]:
    """Return, for each block that keeps its input's shape, the size of output minus input relative to the output's.

    Both are root mean squares over all `images`.
    """
    sums: dict[str, Tensor] = {}
    reshaping: set[str] = set()

    def watch(name: str, block: nn.Module) -> Any:
        def see(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            given = inputs[0] if len(inputs) == 1 else None
            if not isinstance(given, Tensor) or not isinstance(output, Tensor) or given.shape != output.shape:
                reshaping.add(name)
                return
            squares = torch.stack([(output - given).double().square().sum(), output.double().square().sum()])
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

        return block.register_forward_hook(see)

    hooks = [watch(name, block) for name, block in _blocks(network).items()]
    for batch in images:
        network(batch)
    for hook in hooks:
        hook.remove()
    return {name: float((both[0] / both[1]).sqrt()) for name, both in sums.items() if name not in reshaping}


def _blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules in a container that have a forward and layers of their own, a convolution among them."""
    containers = (nn.Sequential, nn.ModuleList)
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():  # parents come before their children
        parent = network.get_submodule(name.rpartition(".")[0])
        inside = any(name.startswith(f"{block}.") for block in found)
        if isinstance(module, containers) or not isinstance(parent, containers) or inside:
            continue
        within = list(module.modules())[1:]
        if any(isinstance(layer, nn.Conv2d) for layer in within):
            found[name] = module
    return found


COMPONENT = Depth
