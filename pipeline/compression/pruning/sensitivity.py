"""Which layers can spare channels: each alone loses a share of them, and the network is measured without any recovery.

The sweep goes over groups of layers that can only lose channels together (see `pipeline.compression.pruning.groups`) and leaves the
network as it was. `layer_ratios` turns it into what `pruner.layer_ratios` of the channel pruner takes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.errors import SettingsError
from pipeline.progress import events

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from pipeline.compression.pruning.importance import Importance
    from pipeline.models.spec import ModelSpec

FILE = "sensitivity.json"
PLOT = "plots/sensitivity.png"
RATIOS = (0.25, 0.5, 0.75)
_ROUNDING = 1e-9
"""0.9 - 0.8 is more than 0.1 in floating point."""


class Sensitivity(BaseModel):
    """What a network is worth while one layer lacks a share of its channels; more is better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    """What was measured, for labels."""
    importance: str
    """By what the channels to lose were chosen, the least important first."""
    baseline: float
    """Of the whole network."""
    values: dict[str, dict[float, float]]
    """Layer -> share of its channels, rounded down to whole ones -> value."""
    joined: dict[str, tuple[str, ...]]
    """Layer -> all layers that lose the same channels, itself first."""


def sweep(
    network: nn.Module,
    spec: ModelSpec,
    measure: Callable[[nn.Module], float],
    ratios: Sequence[float] = RATIOS,
    importance: Importance = "l2",
    *,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    what: str = "accuracy",
) -> Sensitivity:
    """Measure copies of `network`, each with one layer pruned to each of `ratios`.

    Args:
        network: is not changed.
        spec: of `network`.
        measure: takes a network in evaluation mode; more is better. It is called once per layer and ratio, and once more.
        ratios: shares of its channels that a layer loses, between 0 and 1.
        importance: which channels go first; see the channel pruner.
        batches: for importances that look at data: (normalised images (N, C, H, W), labels (N,)).
        what: what `measure` returns, for labels.

    Raises:
        SettingsError: there is no ratio, or one would remove nothing or a whole layer.
        ModelError: the importance finds nothing to score by.
    """
    import torch

    from pipeline.compression.pruning.groups import groups, remove_
    from pipeline.compression.pruning.importance import score_channels

    if not ratios or any(not 0.0 < ratio < 1.0 for ratio in ratios):
        raise SettingsError(
            f"the sensitivity sweep's ratios are {list(ratios)}: give at least one, each the share of its channels that a "
            f"layer loses, above 0 and below 1 (1 would remove the layer)"
        )
    image = torch.zeros(1, *spec.image_shape)
    whole = copy.deepcopy(network).eval()
    scored = score_channels(importance, spec, whole, groups(whole, image), iter(batches))
    baseline = measure(whole)
    values: dict[str, dict[float, float]] = {}
    for group, scores in scored:
        order = torch.argsort(scores, stable=True).tolist()
        values[group.layer] = {}
        for place, ratio in enumerate(sorted(ratios)):
            done = (len(values) - 1) * len(ratios) + place
            events.report("sensitivity", done=done, total=len(scored) * len(ratios))
            to_remove = order[: math.floor(ratio * len(order))]
            smaller = copy.deepcopy(whole)
            if to_remove:
                remove_(smaller, image, {group.layer: to_remove})
            values[group.layer][ratio] = measure(smaller) if to_remove else baseline
    return Sensitivity(
        what=what,
        importance=importance,
        baseline=baseline,
        values=values,
        joined={group.layer: group.layers for group, _ in scored},
    )


def layer_ratios(sensitivity: Sensitivity, tolerated_drop: float) -> dict[str, float]:
    """Return, for every layer, the largest tested ratio up to which the value drops by no more than `tolerated_drop`.

    0 where even the smallest ratio costs more. A larger ratio that by chance costs less than a smaller one does not count.
    """
    found: dict[str, float] = {}
    for layer, values in sensitivity.values.items():
        found[layer] = 0.0
        for ratio, value in sorted(values.items()):
            if not sensitivity.baseline - value <= tolerated_drop + _ROUNDING:
                break
            found[layer] = ratio
    return found


def figure(sensitivity: Sensitivity) -> Figure:
    """A heat map: one row per layer, one column per ratio, and in each cell how the value changed from the baseline."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    layers = list(sensitivity.values)
    ratios = sorted({ratio for values in sensitivity.values.values() for ratio in values})
    changes = np.array(
        [[sensitivity.values[layer][ratio] - sensitivity.baseline for ratio in ratios] for layer in layers]
    )
    drawn = Figure(figsize=(3.2 + 0.9 * len(ratios), 1.6 + 0.3 * len(layers)), layout="constrained")
    axes = drawn.add_subplot()
    worst = max(float(-changes.min()), 1e-9)
    cells = axes.imshow(-changes, aspect="auto", cmap="Oranges", norm=mpl.colors.Normalize(0.0, worst))
    for (row, column), change in np.ndenumerate(changes):
        ink = "white" if -change > 0.6 * worst else "black"
        axes.text(column, row, f"{change:+.3f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(ratios)), [f"{100 * ratio:g} %" for ratio in ratios])
    axes.set_yticks(range(len(layers)), [_label(layer, sensitivity.joined[layer]) for layer in layers])
    axes.set(xlabel=f"channels removed from this layer alone, least {sensitivity.importance} first", ylabel="layer")
    axes.set_title(
        f"Change of {sensitivity.what} from {sensitivity.baseline:.3f}, without recovery", loc="left", fontsize=10
    )
    drawn.colorbar(cells, label=f"drop of {sensitivity.what}")
    return drawn


def write(out: Path, sensitivity: Sensitivity) -> None:
    """Write `sensitivity` into `out` as `FILE` and `PLOT`."""
    from pipeline.report import plots

    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(sensitivity.model_dump_json(indent=2) + "\n", encoding="utf-8")
    plots.png(figure(sensitivity), out / PLOT)


def _label(layer: str, joined: Sequence[str]) -> str:
    return layer if len(joined) == 1 else f"{layer} (+ {len(joined) - 1} joined)"
