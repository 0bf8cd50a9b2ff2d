"""Weights that pruning set to zero: how many there are, and how they stay zero while the rest is trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.models.spec import ModelSpec


def zeros_share(network: nn.Module) -> float:
    """Return the share of the weights of all layers, biases and batch norms left out, that are zero."""
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


class KeepSparsity:
    """The `Rewrite` by which weights that are zero stay zero; biases and batch norms, the vectors, are left out."""

    def __init__(self) -> None:
        self._masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self, spec: ModelSpec, network: nn.Module) -> nn.Module:
        """Remember where the weights of `network` are zero, and return it."""
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and bool((weight == 0).any()):
                self._masks[name] = weight != 0
        return network

    @torch.no_grad()
    def after_step(self, network: nn.Module) -> None:
        """Set to zero what was."""
        for name, mask in self._masks.items():
            weight = network.get_parameter(name)
            if mask.device != weight.device:  # the network has been moved since
                self._masks[name] = mask = mask.to(weight.device)
            weight.mul_(mask)

    def files(self, network: nn.Module, out: Path) -> None:
        """Nothing: zeros are weights like others."""

    def restore(self, network: nn.Module) -> nn.Module:
        """Return `network` as it is."""
        return network
