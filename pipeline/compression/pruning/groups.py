"""Which layers are coupled, and how channels are taken out of all of them at once.

Layers whose outputs are added up or otherwise joined lose the same channels, and whatever reads these loses them too. The
links are found by dependency tracing (Fang et al., "DepGraph: Towards Any Structural Pruning",
https://arxiv.org/abs/2301.12900; package torch-pruning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """A dependency group: layers that lose the same channels, since their outputs are added up or otherwise joined."""

    layer: str
    """The first of `layers`; the group goes by its name."""
    layers: tuple[str, ...]
    traced: Any
    """torch-pruning's own group, with all channels."""


def groups(network: nn.Module, image: Tensor) -> list[Group]:
    """Return all groups of layers that can lose channels: all but the one with the last layer's outputs.

    `image` is any (1, C, H, W) that the network takes.
    """
    names = {module: name for name, module in network.named_modules()}
    graph = _trace(network, image)
    last = _last_layer(network, image)
    found: list[Group] = []
    for group in graph.get_all_groups(ignored_layers=[last], root_module_types=(nn.Conv2d, nn.Linear)):
        layers = [names[module] for module, _ in _writers(graph, group)]
        found.append(Group(names[group[0].dep.target.module], tuple(layers), group))
    return found


def remove_(network: nn.Module, image: Tensor, to_remove: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Remove the channels `to_remove` (name of a `Group` -> channels) in place, and whatever is coupled with them.

    Return layer -> removed output channels, numbered as before.
    """
    names = {module: name for name, module in network.named_modules()}
    graph = _trace(network, image)
    removed: dict[str, tuple[int, ...]] = {}
    for layer, channels in to_remove.items():
        module = network.get_submodule(layer)
        group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, sorted(channels))
        for target, indices in _writers(graph, group):
            removed[names[target]] = tuple(sorted(indices))
        group.prune()
    return removed


def _writers(graph: Any, group: Any) -> list[tuple[nn.Module, list[int]]]:
    """Return the convolutions and linear layers that write the channels of torch-pruning's `group`, with their indices."""
    return [
        (item.dep.target.module, item.idxs)
        for item in group
        if isinstance(item.dep.target.module, nn.Conv2d | nn.Linear)
        and graph.is_out_channel_pruning_fn(item.dep.handler)
    ]


def _trace(network: nn.Module, image: Tensor) -> Any:
    """Return torch-pruning's graph of which layers are coupled."""
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
