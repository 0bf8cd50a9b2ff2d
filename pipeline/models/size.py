"""How large a network is: multiply-accumulates of one image, and parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def macs(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of all convolutions and linear layers for one image (channels, height, width).

    One pass over a blank image counts each layer as often as it runs. Biases, batch norms, activations and pooling are
    left out, as is usual: they cost memory traffic, not multiplications.
    """
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += output.numel() * math.prod(layer.weight.shape[1:])  # one product a weight of the filter, an output

    layers = [
        module for module in network.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    ]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was_training = network.training
    parameter = next(network.parameters())
    try:
        network.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return total


def parameters(network: nn.Module) -> int:
    """Return the number of weights of `network`."""
    return sum(parameter.numel() for parameter in network.parameters())
