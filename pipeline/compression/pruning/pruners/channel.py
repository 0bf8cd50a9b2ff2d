"""Structured pruning: whole channels go, with every layer that reads or writes them, until the network is small enough.

The least important go first, `round_to` at a time, until the multiply-accumulates, the parameters or the measured latency
are at or just below the target. `groups` knows which layers are coupled, `importance` which channels matter.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.compression.pruning import latency
from pipeline.compression.pruning.groups import Group, groups, remove_
from pipeline.compression.pruning.importance import Importance, score_channels
from pipeline.errors import ModelError, SettingsError, near_miss
from pipeline.models.checkpoint import build
from pipeline.models.size import macs, parameters
from pipeline.models.spec import ModelSpec, PruningStep
from pipeline.models.surgery import widths

_PROBES = 32
"""A latency is searched for in so many steps from no block gone to all: each probe is timed, and costs seconds."""
_KERNEL_WIDTH = 8
"""Channels that the narrowest of ONNX Runtime's fast float kernels take at once."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Block:
    """Channels that go together."""

    layer: str
    channels: tuple[int, ...]
    rank: float
    """Blocks with a lower rank go first."""


class Channel:
    """Removes channels down to a share of the multiply-accumulates, the parameters or the latency: give exactly one.

    Latency is what ONNX Runtime takes for one image on one thread of this machine, which must be idle: the exported network
    and its smaller self take turns and the medians count. The search tries few sizes and each of them is exported, so it
    takes half a minute or more. The step records the milliseconds before and after, measured once more at the end.

    A target in MACs or parameters promises no speed. ONNX Runtime's float kernels fill blocks of 8 channels (AVX2) or 16
    (AVX-512), and a width between costs as much as the next block or more (measured by benchmarks/channel_widths.py). So
    give round_to 8 or 16 where speed is what counts; layers that end between are warned of, unless latency is measured.

    Args:
        keep_macs: share of the multiply-accumulates to keep, between 0 and 1.
        importance: what makes a channel important. l1 or l2: norm of the weights that make or read it. lamp: l2 against
            the larger channels of its layer. bn_scale: factor of its batch norm, best after training with a penalty on
            these; layers without batch norm stay whole. taylor, hessian: first- and second-order change of the
            cross-entropy on 16 batches of training images. random: none, for comparison.
        scope: global compares the channels of all layers; local takes the same share of every layer.
        round_to: the number of channels that each pruned layer keeps is a multiple of this.
        max_ratio: largest share of its channels that a layer may lose, over all rounds together.
        layer_ratios: largest share that single layers may lose, by name or pattern such as 'blocks.0.*'; 0 keeps a layer
            whole. Of several that fit, max_ratio among them, the smallest holds. Layers whose outputs are added up lose
            the same channels, so what is said of one holds for all of them.
        keep_parameters: share of the parameters to keep, between 0 and 1.
        keep_latency: share of the measured latency to keep, between 0 and 1.
        seed: of importance random.
    """

    def __init__(
        self,
        keep_macs: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None,
        importance: Importance = "l2",
        scope: Literal["global", "local"] = "global",
        round_to: Annotated[int, Field(ge=1)] = 1,
        max_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9,
        layer_ratios: Mapping[str, Annotated[float, Field(ge=0.0, lt=1.0)]] = {},
        keep_parameters: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None,
        keep_latency: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None,
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        targets = {"keep_macs": keep_macs, "keep_parameters": keep_parameters, "keep_latency": keep_latency}
        given = {name: share for name, share in targets.items() if share is not None}
        if len(given) != 1:
            found = " and ".join(f"{name} ({share})" for name, share in given.items()) or "none"
            raise SettingsError(
                f"pruners.channel takes exactly one target, keep_macs, keep_parameters or keep_latency, and got {found}: "
                f"give one; a target that a recipe or a default gives is taken back by setting it to null"
            )
        ((self.target, self.keep),) = given.items()
        self.importance: Importance = importance
        self.scope: Literal["global", "local"] = scope
        self.round_to = round_to
        self.max_ratio = max_ratio
        self.layer_ratios = dict(layer_ratios)
        self.seed = seed
        self._round, self._rounds = 1, 1

    def rounds(self, count: int) -> list[Channel]:
        """Return `count` pruners; the i-th keeps the target's i/`count`-th power of what was there before the first.

        Each finds out what that was from the plan, so the step that one returns must be in the spec that the next is given.
        """
        pruners = [copy.copy(self) for _ in range(count)]
        for place, pruner in enumerate(pruners):
            pruner._round, pruner._rounds = place + 1, count
        return pruners

    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Prune `network` in place; outputs of the last layer and channels of the image stay.

        Looks at `batches` for the importances taylor and hessian only. Raises `SettingsError` where a pattern of
        `layer_ratios` fits no layer, and `ModelError` where no layer can lose `round_to` channels or the target of the last
        round cannot be reached; then nothing is changed.
        """
        network.eval()
        image = torch.zeros(1, *spec.image_shape)
        found = groups(network, image)
        ratios = self._ratios(found)
        origin = self._before_first_round(spec, network)
        scored = score_channels(self.importance, spec, network, found, batches, self.seed)
        blocks = self._blocks(scored, ratios, widths(origin))
        measure = self._measure(spec, origin)

        def kept(count: int) -> float:
            smaller = copy.deepcopy(network)
            remove_(smaller, image, _by_layer(blocks[:count]))
            before, after = measure(smaller)
            return after / before

        share = self.keep ** (self._round / self._rounds)
        if self._round > 1 and kept(0) <= share:
            count = 0  # a round before took more than its share, since whole blocks go
        else:
            self._check_reach(spec, kept(len(blocks)) if blocks else None)
            step = math.ceil(len(blocks) / _PROBES) if self.target == "keep_latency" else 1
            count = _minimum(kept, share, len(blocks), step)
        removed = remove_(network, image, _by_layer(blocks[:count]))
        timed = self._timed(share, *measure(network)) if self.target == "keep_latency" else {}
        if not timed and self._round == self._rounds:
            _warn_of_widths({layer: widths(network)[layer][1] for layer in removed})
        return PruningStep(
            method="channel", arguments={**self._arguments(), **timed}, widths=widths(network), removed=removed
        )

    def _arguments(self) -> dict[str, Any]:
        """Return the settings of this pruner, for the plan."""
        return {
            self.target: self.keep,
            "importance": self.importance,
            "scope": self.scope,
            "round_to": self.round_to,
            "max_ratio": self.max_ratio,
            **({"layer_ratios": self.layer_ratios} if self.layer_ratios else {}),
            **({"seed": self.seed} if self.importance == "random" else {}),
            **({"round": self._round, "rounds": self._rounds} if self._rounds > 1 else {}),
        }

    def _before_first_round(self, spec: ModelSpec, network: nn.Module) -> nn.Module:
        """Return a network as wide as this one was before the first round."""
        if self._round == 1:
            return network
        return build(spec.model_copy(update={"pruning": spec.pruning[: 1 - self._round]})).eval()

    def _check_reach(self, spec: ModelSpec, smallest: float | None) -> None:
        """Raise `ModelError` unless the target can be reached; `smallest` is the least share there can be, None for nothing."""
        ratios = f" and pruner.layer_ratios {self.layer_ratios}" if self.layer_ratios else ""
        if smallest is None:
            raise ModelError(
                f"nothing was pruned: no layer of {spec.architecture} can lose {self.round_to} channels and keep as many; "
                f"lower pruner.round_to ({self.round_to}) or raise pruner.max_ratio ({self.max_ratio}){ratios}"
            )
        if smallest > self.keep:
            slow = self.target == "keep_latency"
            rounding = "try another round_to (8 and 16 fill the kernels)" if slow else "lower round_to"
            raise ModelError(
                f"pruner.{self.target} is {self.keep}, but the least that {spec.architecture} can keep with round_to "
                f"{self.round_to} and max_ratio {self.max_ratio}{ratios} is {smallest:.4f}: raise {self.target} to at least "
                f"{smallest:.4f}, {rounding} or raise max_ratio{' and layer_ratios' if ratios else ''}"
            )

    def _measure(self, spec: ModelSpec, network: nn.Module) -> Callable[[nn.Module], tuple[float, float]]:
        """Return what gives the target's quantity of (`network` as it is now, a smaller one)."""
        if self.target == "keep_latency":
            return latency.beside(spec, network)

        def size(one: nn.Module) -> int:
            return macs(one, spec.image_shape) if self.target == "keep_macs" else parameters(one)

        whole = size(network)
        return lambda smaller: (whole, size(smaller))

    def _timed(self, share: float, before: float, after: float) -> dict[str, float]:
        """Say what was gained; return it for the step."""
        _log.info("channel: %.4f ms became %.4f ms (ONNX Runtime, batch 1, one thread)", before, after)
        if after > share * before:
            _log.warning(
                "channel: a probe was inside pruner.keep_latency (%.4f in this round), but measured once more the pruned "
                "network keeps %.4f: other work on this machine disturbs the clock",
                share,
                after / before,
            )
        return {"latency_ms_before": before, "latency_ms_after": after}

    def _ratios(self, found: Sequence[Group]) -> dict[str, float]:
        """Return the largest share that each group may lose. Raises `SettingsError` for a pattern that fits no layer."""
        layers = [layer for group in found for layer in group.layers]
        for pattern in self.layer_ratios:
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                raise SettingsError(
                    f"pruner.layer_ratios names {pattern!r}, which fits no layer that can lose channels; these can: "
                    f"{', '.join(layers)}{near_miss(pattern, layers)}"
                )
        return {
            group.layer: min(
                [self.max_ratio]
                + [
                    ratio
                    for pattern, ratio in self.layer_ratios.items()
                    if any(fnmatchcase(layer, pattern) for layer in group.layers)
                ]
            )
            for group in found
        }

    def _blocks(
        self,
        scored: Sequence[tuple[Group, Tensor]],
        ratios: Mapping[str, float],
        origin: Mapping[str, tuple[int, int]],
    ) -> list[_Block]:
        """Return every block of channels that may go, in the order in which they shall; `origin` says what widths were."""
        blocks: list[_Block] = []
        for group, score in scored:
            order = torch.argsort(score, stable=True)
            lost = origin[group.layer][1] - len(score)
            for start, stop in _runs(len(score), self.round_to, ratios[group.layer], lost):
                channels = order[start:stop]
                rank = stop / len(score) if self.scope == "local" else float(score[channels].mean())
                blocks.append(_Block(group.layer, tuple(channels.tolist()), rank))
        return sorted(blocks, key=lambda block: block.rank)


def _warn_of_widths(pruned: Mapping[str, int]) -> None:
    """Warn of the layers, of those `pruned` (layer -> channels left), that waste a part of the float kernels."""
    unfilled = [f"{layer} {width}" for layer, width in pruned.items() if width % _KERNEL_WIDTH]
    if unfilled:
        _log.warning(
            "channel: %d of %d pruned layers have widths that ONNX Runtime's float kernels cannot fill (%s): the pruned "
            "network may be no faster than before, or slower; set pruner.round_to to 8 or 16 where speed is what counts",
            len(unfilled), len(pruned), ", ".join(unfilled),
        )  # fmt: skip


def _by_layer(blocks: Iterable[_Block]) -> dict[str, list[int]]:
    channels: dict[str, list[int]] = {}
    for block in blocks:
        channels.setdefault(block.layer, []).extend(block.channels)
    return channels


def _runs(channels: int, size: int, max_ratio: float, lost: int = 0) -> Iterable[tuple[int, int]]:
    """Cut 0 .. `channels` into runs of `size`, the first shorter if need be, so that what stays is a multiple of it.

    At least one run stays, and no more than ``max_ratio`` of all channels are cut, those `lost` before among them.
    """
    start = 0
    while True:
        stop = start + (channels - start) % size if (channels - start) % size else start + size
        if stop > channels - size or stop + lost > max_ratio * (channels + lost):
            return
        yield start, stop
        start = stop


def _minimum(kept: Callable[[int], float], target: float, total: int, step: int) -> int:
    """Return a count at which ``kept(count) <= target``, at most `step` above one at which it is not.

    ``kept(total)`` is known to be so, and ``kept(0)`` is taken not to be.
    """
    too_few, enough = 0, total
    while enough - too_few > step:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if kept(middle) <= target else (middle, enough)
    return enough


COMPONENT = Channel
