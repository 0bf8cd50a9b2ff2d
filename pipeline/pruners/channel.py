"""Structured pruning: whole channels go, with every layer that reads or writes them, until the network is small enough.

Which layers hang together is found by dependency tracing (Fang et al., "DepGraph: Towards Any Structural Pruning",
https://arxiv.org/abs/2301.12900; package torch-pruning). A channel counts as important by the size of all weights that
make or read it. The least important go first, `round_to` at a time, until the multiply-accumulates are at or just below
the target.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.checkpoint import ModelSpec, PruningStep
from pipeline.errors import ModelError
from pipeline.macs import macs
from pipeline.surgery import widths


@dataclass(frozen=True)
class _Block:
    """Channels that go together."""

    layer: str
    channels: tuple[int, ...]
    rank: float
    """Blocks with a lower rank go first."""


class Channel:
    """Removes channels down to a share of the multiply-accumulates.

    Args:
        keep_macs: share of the multiply-accumulates to keep, between 0 and 1.
        importance: l1 or l2 norm of the weights that make or read a channel.
        scope: global compares the channels of all layers; local takes the same share of every layer.
        round_to: the number of channels that each pruned layer keeps is a multiple of this.
        max_ratio: largest share of its channels that a layer may lose.
    """

    def __init__(
        self,
        keep_macs: Annotated[float, Field(gt=0.0, lt=1.0)],
        importance: Literal["l1", "l2"] = "l2",
        scope: Literal["global", "local"] = "global",
        round_to: Annotated[int, Field(ge=1)] = 1,
        max_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9,
    ) -> None:
        self.keep_macs = keep_macs
        self.importance: Literal["l1", "l2"] = importance
        self.scope: Literal["global", "local"] = scope
        self.round_to = round_to
        self.max_ratio = max_ratio

    def rounds(self, count: int) -> list[Channel]:
        """Return `count` pruners that each keep the same share of what the one before left."""
        share = self.keep_macs ** (1.0 / count)
        return [Channel(share, self.importance, self.scope, self.round_to, self.max_ratio)] * count

    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Prune `network` in place; outputs of the last layer and channels of the image stay. Looks at no data.

        Raises `ModelError` where no layer can lose `round_to` channels, or where the target cannot be reached.
        """
        network.eval()
        image = torch.zeros(1, *spec.image_shape)
        blocks = self._blocks(network, image)
        if not blocks:
            raise ModelError(
                f"nothing was pruned: no layer of {spec.architecture} can lose {self.round_to} channels and keep as many; "
                f"lower pruner.round_to ({self.round_to}) or raise pruner.max_ratio ({self.max_ratio})"
            )
        whole = macs(network, spec.image_shape)

        def kept(count: int) -> float:
            smaller = copy.deepcopy(network)
            _remove(smaller, image, blocks[:count])
            return macs(smaller, spec.image_shape) / whole

        smallest = kept(len(blocks))
        if smallest > self.keep_macs:
            raise ModelError(
                f"pruner.keep_macs is {self.keep_macs}, but the least that {spec.architecture} can keep with round_to "
                f"{self.round_to} and max_ratio {self.max_ratio} is {smallest:.4f}: raise keep_macs to at least "
                f"{smallest:.4f}, lower round_to or raise max_ratio"
            )
        fewest, enough = 0, len(blocks)  # keeps too much with `fewest` blocks gone, little enough with `enough`
        while enough - fewest > 1:
            middle = (fewest + enough) // 2
            fewest, enough = (fewest, middle) if kept(middle) <= self.keep_macs else (middle, enough)
        removed = _remove(network, image, blocks[:enough])
        return PruningStep(
            method="channel",
            arguments={
                "keep_macs": self.keep_macs,
                "importance": self.importance,
                "scope": self.scope,
                "round_to": self.round_to,
                "max_ratio": self.max_ratio,
            },
            widths=widths(network),
            removed=removed,
        )

    def _blocks(self, network: nn.Module, image: Tensor) -> list[_Block]:
        """Return every block of channels that may go, in the order in which they shall."""
        from torch_pruning.pruner.importance import GroupMagnitudeImportance

        magnitude = GroupMagnitudeImportance(p=1 if self.importance == "l1" else 2)
        names = {module: name for name, module in network.named_modules()}
        graph = _trace(network, image)
        last = _last_layer(network, image)
        blocks: list[_Block] = []
        for group in graph.get_all_groups(ignored_layers=[last], root_module_types=(nn.Conv2d, nn.Linear)):
            scores = magnitude(group)
            order = torch.argsort(scores, stable=True)
            for start, stop in _runs(len(scores), self.round_to, self.max_ratio):
                channels = order[start:stop]
                rank = stop / len(scores) if self.scope == "local" else float(scores[channels].mean())
                layer = names[group[0].dep.target.module]
                blocks.append(_Block(layer, tuple(channels.tolist()), rank))
        return sorted(blocks, key=lambda block: block.rank)


def _runs(channels: int, size: int, max_ratio: float) -> Iterable[tuple[int, int]]:
    """Cut 0 .. `channels` into runs of `size`, the first shorter if need be, so that what stays is a multiple of it.

    At least one run stays, and no more than ``max_ratio * channels`` are cut.
    """
    start = 0
    while True:
        stop = start + (channels - start) % size if (channels - start) % size else start + size
        if stop > channels - size or stop > max_ratio * channels:
            return
        yield start, stop
        start = stop


def _remove(network: nn.Module, image: Tensor, blocks: Sequence[_Block]) -> dict[str, tuple[int, ...]]:
    """Remove the channels of `blocks` in place; return layer -> removed output channels, numbered as before."""
    doomed: dict[str, list[int]] = {}
    for block in blocks:
        doomed.setdefault(block.layer, []).extend(block.channels)
    names = {module: name for name, module in network.named_modules()}
    graph = _trace(network, image)
    removed: dict[str, tuple[int, ...]] = {}
    for layer, channels in doomed.items():
        module = network.get_submodule(layer)
        group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, sorted(channels))
        for dependency, indices in group:
            target = dependency.target.module
            if isinstance(target, nn.Conv2d | nn.Linear) and graph.is_out_channel_pruning_fn(dependency.handler):
                removed[names[target]] = tuple(sorted(indices))
        group.prune()
    return removed


def _trace(network: nn.Module, image: Tensor) -> Any:
    """Return torch-pruning's graph of which layers hang together."""
    import torch_pruning

    return torch_pruning.DependencyGraph().build_dependency(network, example_inputs=image)


@torch.no_grad()
def _last_layer(network: nn.Module, image: Tensor) -> nn.Module:
    """Return the convolution or linear layer that runs last: its outputs are the answer."""
    ran: list[nn.Module] = []
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(lambda module, *_: ran.append(module)) for layer in layers]
    network(image)
    for hook in hooks:
        hook.remove()
    return ran[-1]


COMPONENT = Channel
