"""How much a channel matters: one score per channel for every group of layers that lose their channels together.

    l1, l2        size of all weights that make or read the channel, over the mean of its layer
    lamp          squared l2 over that of the channels that would still be there (https://arxiv.org/abs/2010.07611)
    bn_scale      |gamma| of its batch norms as they are, so that all layers compare (https://arxiv.org/abs/1708.06519)
    taylor        first-order change of the loss without it, squared (https://arxiv.org/abs/1906.10771)
    hessian       second-order change, its curvature the empirical Fisher information (https://arxiv.org/abs/1801.05787)
    random        a draw; what every other one has to beat

The first four and the groups come from torch-pruning. Its Taylor and Hessian scores are not used: as of 1.6.1 the first
leaves batch norms out and adds up the weights before and behind a channel, which both hold the same effect; the second
keeps the gradients of the last image alone. Here both follow from a factor of 1 put on every input channel of every
layer: nothing but these layers reads a channel, so their factors' derivatives add up to what its removal does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compression.pruning.groups import Group
from pipeline.errors import ModelError
from pipeline.models.spec import ModelSpec

Importance: TypeAlias = Literal["l1", "l2", "bn_scale", "taylor", "hessian", "lamp", "random"]
BATCHES = 16
"""Batches that taylor and hessian look at."""


def score_channels(
    importance: Importance,
    spec: ModelSpec,
    network: nn.Module,
    groups: Sequence[Group],
    batches: Iterator[tuple[Tensor, Tensor]],
    seed: int = 0,
) -> list[tuple[Group, Tensor]]:
    """Return every one of `groups` that there is something to score by, with the scores (channels,) of its channels.

    The least important score lowest. `network` must be in evaluation mode. taylor and hessian take up to `BATCHES` of
    `batches`, (normalised images (N, C, H, W), labels (N,)); `seed` is for random. Raises `ModelError` where there are no
    batches, or where there are groups but nothing to score any of them by.
    """
    score = _scores(importance, network, batches, seed)
    scored = [(group, scores) for group in groups if (scores := score(group.traced)) is not None]
    if groups and not scored:
        lacks = "the scale of its batch norms" if importance == "bn_scale" else "the layers that read it"
        raise ModelError(
            f"nothing was pruned: importance {importance!r} scores a channel by {lacks}, and no channel of "
            f"{spec.architecture} has any; choose 'l2'"
        )
    return scored


def _scores(
    importance: Importance, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], seed: int
) -> Callable[[Any], Tensor | None]:
    """Return what gives a traced group's scores, or None where there is nothing to score by."""
    from torch_pruning.pruner import importance as library

    if importance == "bn_scale":
        return library.BNScaleImportance(normalizer=None)
    if importance == "lamp":
        return library.LAMPImportance()
    if importance == "random":
        chance = torch.Generator().manual_seed(seed)
        return lambda group: torch.rand(len(group[0].idxs), generator=chance)
    if importance in ("taylor", "hessian"):
        return _by_loss(importance, network, batches)
    return library.GroupMagnitudeImportance(p=1 if importance == "l1" else 2)


def _by_loss(
    importance: Importance, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]
) -> Callable[[Any], Tensor | None]:
    slopes = [_slopes(network, images, labels) for images, labels in islice(batches, BATCHES)]
    if not slopes:
        raise ModelError(f"pruner.importance is {importance!r}, which looks at images, but there were none")

    def score(group: Any) -> Tensor | None:
        effects = [effect for batch in slopes if (effect := _effect(group, batch)) is not None]
        if not effects:
            return None
        if importance == "taylor":
            return torch.stack([effect.mean(dim=0).square() for effect in effects]).mean(dim=0)
        return torch.cat(effects).square().mean(dim=0) / 2

    return score


def _slopes(network: nn.Module, images: Tensor, labels: Tensor) -> dict[nn.Module, Tensor]:
    """Return, for every convolution and linear layer, the slope of each image's loss in a factor on each of its inputs.

    (images, input channels); the loss is cross-entropy. One backward pass gives all of them, as no image touches another
    while batch norms stand still.
    """
    factors: list[tuple[nn.Module, Tensor]] = []

    def multiply(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        channel = 1 if isinstance(layer, nn.Conv2d) else inputs[0].ndim - 1
        shape = [size if axis in (0, channel) else 1 for axis, size in enumerate(inputs[0].shape)]
        factors.append((layer, torch.ones(shape, device=images.device, requires_grad=True)))
        return (inputs[0] * factors[-1][1], *inputs[1:])

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(multiply) for layer in layers]
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(network(images), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [factor for _, factor in factors])
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[nn.Module, Tensor] = {}
    for (layer, _), gradient in zip(factors, gradients, strict=True):
        slope = gradient.flatten(1)
        found[layer] = found[layer] + slope if layer in found else slope  # a layer may run more than once
    return found


def _effect(group: Any, slopes: dict[nn.Module, Tensor]) -> Tensor | None:
    """Return (images, channels): the slopes of all layers that read the channels of `group`; None where none does."""
    from torch_pruning.pruner import function

    reading = (function.prune_conv_in_channels, function.prune_linear_in_channels)
    total = None
    for item in group.items:
        slope = slopes.get(item.dep.target.module)
        if item.dep.handler not in reading or slope is None:
            continue
        if total is None:
            total = slope.new_zeros(len(slope), len(group[0].idxs))
        total.index_add_(1, torch.tensor(item.root_idxs, device=slope.device), slope[:, item.idxs])
    return total
