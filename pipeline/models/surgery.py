"""How a plan changes the shape of a network: blocks dropped, layers cut into factors or made narrower, batch norms folded.

Pruners use these functions on a trained network; `checkpoint.build` replays them on a fresh one, whose weights are then
read from the file. A plan is plain data, so nothing but tensors and JSON is ever read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pipeline.errors import ModelError


def drop_(network: nn.Module, blocks: Sequence[str]) -> None:
    """Replace each named block, in place, by nothing: what went in comes out. Raises `ModelError`."""
    for name in blocks:
        layer(network, name)
        replace_(network, name, nn.Identity())


def factorise_(network: nn.Module, ranks: Mapping[str, tuple[int, ...]]) -> None:
    """Replace each named layer, in place, by a chain of fresh ones that pass through fewer channels. Raises `ModelError`.

    ``(rank,)`` gives two layers: linear layers, and convolutions whose kernel stays with the first. ``(rank_in, rank_out)``
    gives a convolution three: 1x1 to rank_in, the kernel from rank_in to rank_out, 1x1 to the outputs (Tucker-2).
    """
    for name, rank in ranks.items():
        replace_(network, name, factors(name, layer(network, name), rank))


def factors(name: str, whole: nn.Module, rank: tuple[int, ...]) -> nn.Sequential:
    """Return the fresh chain that stands for the layer `whole`, called `name` in messages, at `rank`."""
    if isinstance(whole, nn.Linear) and len(rank) == 1:
        return nn.Sequential(
            nn.Linear(whole.in_features, rank[0], bias=False),
            nn.Linear(rank[0], whole.out_features, bias=whole.bias is not None),
        )
    if isinstance(whole, nn.Conv2d) and whole.groups == 1 and len(rank) in (1, 2):
        inward, outward = rank[0], rank[-1]
        middle = nn.Conv2d(
            inward if len(rank) == 2 else whole.in_channels,
            outward,
            whole.kernel_size,  # type: ignore[arg-type]  # torch says tuple[int, ...] of what is always a pair
            whole.stride,  # type: ignore[arg-type]
            whole.padding,  # type: ignore[arg-type]
            whole.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=whole.padding_mode,
        )
        last = nn.Conv2d(outward, whole.out_channels, 1, bias=whole.bias is not None)
        if len(rank) == 1:
            return nn.Sequential(middle, last)
        return nn.Sequential(nn.Conv2d(whole.in_channels, inward, 1, bias=False), middle, last)
    raise ModelError(f"layer {name!r}, a {type(whole).__name__}, cannot be cut into factors of rank {rank}")


def widths(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of every convolution, batch norm and linear layer, by name."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = (module.in_channels, module.out_channels)
        elif isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, nn.BatchNorm2d):
            found[name] = (module.num_features, module.num_features)
    return found


def set_widths_(network: nn.Module, wanted: Mapping[str, tuple[int, int]]) -> None:
    """Replace, in place, every layer whose width differs from `wanted` by a fresh one that fits. Raises `ModelError`."""
    for name, (inputs, outputs) in wanted.items():
        old = layer(network, name)
        new: nn.Module
        if isinstance(old, nn.Conv2d):
            if old.groups != 1:
                raise ModelError(
                    f"layer {name!r} has {old.groups} groups; pruned grouped convolutions cannot be rebuilt"
                )
            new = nn.Conv2d(
                inputs,
                outputs,
                old.kernel_size,  # type: ignore[arg-type]
                old.stride,  # type: ignore[arg-type]
                old.padding,  # type: ignore[arg-type]
                old.dilation,  # type: ignore[arg-type]
                bias=old.bias is not None,
                padding_mode=old.padding_mode,
            )
        elif isinstance(old, nn.Linear):
            new = nn.Linear(inputs, outputs, bias=old.bias is not None)
        elif isinstance(old, nn.BatchNorm2d):
            new = nn.BatchNorm2d(outputs, old.eps, old.momentum, old.affine, old.track_running_stats)
        else:
            raise ModelError(f"the pruning plan names layer {name!r}, a {type(old).__name__} whose width cannot be set")
        if widths(old) != widths(new):
            replace_(network, name, new)


def fold_(network: nn.Module, batch_norms: Mapping[str, str]) -> None:
    """Fold, in place, each batch norm into the convolution that it is mapped to, with the statistics that it has gathered.

    The convolution gets a bias; nothing stays where the batch norm was. In evaluation the network answers as before
    (Jacob et al., https://arxiv.org/abs/1712.05877, section 3.2). Raises `ModelError`.
    """
    for name, convolution_name in batch_norms.items():
        norm, convolution = layer(network, name), layer(network, convolution_name)
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(convolution, nn.Conv2d):
            raise ModelError(
                f"the plan folds {name!r}, a {type(norm).__name__}, into {convolution_name!r}, a "
                f"{type(convolution).__name__}: only a BatchNorm2d can be folded, and only into a Conv2d"
            )
        assert norm.running_mean is not None and norm.running_var is not None
        with torch.no_grad():
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
            convolution.weight *= factor.view(-1, 1, 1, 1)
            convolution.bias = nn.Parameter(norm.bias + shift * factor)
        replace_(network, name, nn.Identity())


def layer(network: nn.Module, name: str) -> nn.Module:
    """Return the module called `name`. Raises `ModelError` where a plan names what the architecture lacks."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"the pruning plan names layer {name!r}, which this architecture lacks") from error


def replace_(network: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the module called `name` is."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, new)
