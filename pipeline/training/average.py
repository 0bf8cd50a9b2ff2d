"""The moving average of a network's weights, which is evaluated and kept in its place."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move every float of `average` towards `network`: ``decay * average + (1 - decay) * network``; copy the rest."""
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
    # All at once: on a GPU a call takes longer than its work.
    torch._foreach_lerp_([mine for mine, _ in floats], [theirs for _, theirs in floats], 1.0 - decay)
    for mine, theirs in pairs:
        if not mine.is_floating_point():
            mine.copy_(theirs)
