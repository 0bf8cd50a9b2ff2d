"""Low rank: a layer becomes a chain of two or three layers that pass through fewer channels.

The weights of a layer, (outputs, inputs, kernel), are projected on the directions of its outputs that hold most of their
energy, and where the kernel is larger than 1x1 also on those of its inputs. The first alone is the truncated singular value
decomposition (Eckart and Young, https://doi.org/10.1007/BF02288367), used for linear layers and 1x1 convolutions; both
together are Tucker-2 (Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", https://arxiv.org/abs/1511.06530), found by the higher-order singular value decomposition (De Lathauwer et
al., https://doi.org/10.1137/S0895479896305696): what it loses, squared, is at most the energy discarded in both modes.
"""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models import surgery
from pipeline.models.size import macs
from pipeline.models.spec import ModelSpec, PruningStep

_log = logging.getLogger(__name__)


class LowRank:
    """Cuts linear layers and convolutions into chains of thinner ones, wherever the chain takes fewer multiplications.

    Give either `energy` or `keep_macs`. Batch norms and grouped convolutions stay as they are. A chain runs more and thinner
    layers than it replaces, so milliseconds fall less than multiply-accumulates do (benchmarks/compression.py), and with ranks
    that the kernels cannot fill they may rise. Measure before you trust it.

    Args:
        energy: share of the squared singular values that each cut layer keeps of its outputs and of its inputs.
        keep_macs: share of the multiply-accumulates to keep; the largest energy that reaches it is taken for all layers.
        round_to: every rank is a multiple of this, or the whole width of the layer. Narrow networks need less than 8.
    """

    def __init__(
        self,
        energy: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None,
        keep_macs: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None,
        round_to: Annotated[int, Field(ge=1)] = 8,
    ) -> None:
        if (energy is None) == (keep_macs is None):
            raise ValueError(
                f"energy is {energy} and keep_macs is {keep_macs}: give exactly one of them, each between 0 and 1"
            )
        self.energy = energy
        self.keep_macs = keep_macs
        self.round_to = round_to

    def rounds(self, count: int) -> list[LowRank]:
        """Return this pruner alone, whatever `count` is: a chain that is cut again only gets longer."""
        return [self]

    @torch.no_grad()
    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Cut layers of `network` in place. Looks at no data.

        Raises `ModelError` where no layer gets cheaper, or where `keep_macs` cannot be reached.
        """
        network.eval()
        layers = _layers(network, spec.image_shape)
        whole = macs(network, spec.image_shape)
        energy = self._energy(spec.architecture, layers, whole)
        ranks = {name: rank for name, layer in layers.items() if (rank := layer.cheapest(energy, self.round_to))}
        _cut_(network, layers, ranks)
        network.eval()  # the chains are fresh
        kept = macs(network, spec.image_shape) / whole
        _log.info(
            "low_rank: %d of %d layers cut at energy %.4f, %.4f of the multiply-accumulates kept; more and thinner layers "
            "gain less in milliseconds than that, or nothing",
            len(ranks), len(layers), energy, kept,
        )  # fmt: skip
        arguments = {"energy": self.energy, "keep_macs": self.keep_macs, "round_to": self.round_to}
        return PruningStep(method="low_rank", arguments=arguments, ranks=ranks)

    def _energy(self, architecture: str, layers: Mapping[str, _Layer], whole: int) -> float:
        """Return the energy to keep: the given one, or the largest that reaches `keep_macs`. Raises `ModelError`."""

        def saved(energy: float) -> int:
            return sum(layer.macs(()) - layer.macs(layer.cheapest(energy, self.round_to)) for layer in layers.values())

        # Ranks change at the shares of the layers and nowhere else, so these are all the energies there are.
        energies = sorted(
            {share for layer in layers.values() for mode in layer.modes for share in mode.shares.tolist()}
        )
        cutting = _last(energies, lambda energy: saved(energy) > 0)
        if cutting is None:
            raise ModelError(
                f"nothing was pruned: no layer of {architecture} takes fewer multiplications as a chain of thinner ones "
                f"with pruner.round_to {self.round_to}; lower it, or prune by another method"
            )
        if self.energy is not None:
            if self.energy > cutting:
                raise ModelError(
                    f"nothing was pruned: with pruner.energy {self.energy} and round_to {self.round_to} no layer of "
                    f"{architecture} takes fewer multiplications as a chain of thinner ones; lower energy to at most "
                    f"{math.floor(cutting * 1e4) / 1e4}"
                )
            return self.energy
        assert self.keep_macs is not None
        target = self.keep_macs * whole
        enough = _last(energies, lambda energy: whole - saved(energy) <= target)
        if enough is None:
            smallest = math.ceil((whole - saved(energies[0])) / whole * 1e4) / 1e4
            raise ModelError(
                f"pruner.keep_macs is {self.keep_macs}, but the least that {architecture} can keep with round_to "
                f"{self.round_to} is {smallest}: raise keep_macs to at least {smallest}"
                + (" or lower round_to" if self.round_to > 1 else "")
            )
        return enough


@dataclass(frozen=True)
class _Mode:
    """The directions of a layer's outputs or inputs, those with most energy first."""

    basis: Tensor
    """(width, width) float64, orthonormal columns."""
    shares: Tensor
    """(width,) float64: share of all energy in the first 1, 2, ... directions."""

    def rank(self, energy: float, round_to: int) -> int:
        """Return the fewest directions, a multiple of `round_to` or all, that keep at least `energy`."""
        needed = 1 + int((self.shares < energy).sum())
        return min(math.ceil(needed / round_to) * round_to, len(self.shares))


@dataclass(frozen=True)
class _Layer:
    """A layer that may be cut."""

    weight: Tensor
    """(outputs, inputs, kernel height, kernel width) float64."""
    places_in: int
    """Pixels that it reads of one image, over all times that it runs."""
    places_out: int
    outputs: _Mode
    inputs: _Mode

    @property
    def modes(self) -> tuple[_Mode, _Mode]:
        return self.outputs, self.inputs

    def macs(self, rank: tuple[int, ...]) -> int:
        """Return the multiply-accumulates of one image at `rank`; ``()`` stands for the whole layer."""
        outputs, inputs, height, width = self.weight.shape
        kernel = height * width
        if not rank:
            return self.places_out * outputs * inputs * kernel
        if len(rank) == 1:
            return self.places_out * rank[0] * (inputs * kernel + outputs)
        inward, outward = rank
        return self.places_in * inputs * inward + self.places_out * outward * (inward * kernel + outputs)

    def cheapest(self, energy: float, round_to: int) -> tuple[int, ...]:
        """Return the ranks that keep `energy` with the fewest multiplications; ``()`` where no chain has fewer."""
        outward = self.outputs.rank(energy, round_to)
        choices: list[tuple[int, ...]] = [(), (outward,)]
        if self.weight[0, 0].numel() > 1:
            choices.append((self.inputs.rank(energy, round_to), outward))
        return min(choices, key=self.macs)

    def factors(self, rank: tuple[int, ...]) -> list[Tensor]:
        """Return the weights of the chain, first layer first, each (outputs, inputs, ...)."""
        out = self.outputs.basis[:, : rank[-1]]
        core = torch.einsum("oihw,or->rihw", self.weight, out)
        if len(rank) == 1:
            return [core, out]
        into = self.inputs.basis[:, : rank[0]]
        return [into.T, torch.einsum("rihw,is->rshw", core, into), out]


def _layers(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, _Layer]:
    """Return every linear layer and ungrouped convolution that one blank image passes through."""
    places: dict[nn.Module, tuple[int, int]] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        linear = isinstance(layer, nn.Linear)
        seen = [tensor[..., 0].numel() if linear else tensor[0, 0].numel() for tensor in (inputs[0], output)]
        before = places.get(layer, (0, 0))
        places[layer] = (before[0] + seen[0], before[1] + seen[1])

    names: dict[nn.Module, str] = {
        module: name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    hooks = [layer.register_forward_hook(see) for layer in names]
    network(torch.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    return {names[layer]: _measure(layer, *seen) for layer, seen in places.items()}


def _measure(layer: Any, places_in: int, places_out: int) -> _Layer:
    outputs, inputs = layer.weight.shape[:2]
    weight = layer.weight.detach().double().reshape(outputs, inputs, *(layer.weight.shape[2:] or (1, 1)))
    by_input = weight.transpose(0, 1).reshape(inputs, -1)
    return _Layer(weight, places_in, places_out, _mode(weight.reshape(outputs, -1)), _mode(by_input))


def _mode(unfolded: Tensor) -> _Mode:
    """Return the left singular vectors of `unfolded`, (width, rest), and the energy they hold.

    They are eigenvectors of ``unfolded @ unfolded.T``, which is small where the rest is wide; in float64 squaring costs
    nothing that float32 weights could show.
    """
    energies, basis = torch.linalg.eigh(unfolded @ unfolded.T)
    sums = energies.flip(0).clamp(min=0.0).cumsum(0)
    return _Mode(basis.flip(1), sums / sums[-1].clamp(min=torch.finfo(torch.float64).tiny))


def _last(energies: list[float], holds: Callable[[float], bool]) -> float | None:
    """Return the last of rising `energies` for which `holds`, found by bisection: it holds up to a place and not beyond."""
    place = bisect.bisect_left(energies, True, key=lambda energy: not holds(energy))
    return energies[place - 1] if place else None


def _cut_(network: nn.Module, layers: Mapping[str, _Layer], ranks: Mapping[str, tuple[int, ...]]) -> None:
    """Replace each layer in `ranks`, in place, by its chain with the weights that come closest to it."""
    biases = {name: network.get_submodule(name).bias for name in ranks}
    surgery.factorise_(network, ranks)
    for name, rank in ranks.items():
        chain = [*network.get_submodule(name).children()]
        for link, weight in zip(chain, layers[name].factors(rank), strict=True):
            assert isinstance(link.weight, Tensor)
            link.weight.copy_(weight.reshape(link.weight.shape))
        if (bias := biases[name]) is not None:
            assert isinstance(chain[-1].bias, Tensor) and isinstance(bias, Tensor)
            chain[-1].bias.copy_(bias)


COMPONENT = LowRank
