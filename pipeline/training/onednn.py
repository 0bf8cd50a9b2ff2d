"""Keep a training away from a defect of oneDNN, the library by which PyTorch convolves on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def is_unsafe(network: nn.Module, device: torch.device) -> bool:
    """Whether oneDNN would corrupt memory in a backward pass of `network` on `device`.

    Ask it of the network as its architecture builds it: in one that was traced the convolutions are no modules.

    oneDNN as PyTorch 2.13 ships it writes past a buffer in the weight gradient of a strided 1x1 convolution of 2 to 7
    input channels (seen on AVX2 with one thread: glibc aborts, or the run dies later). A network so narrow is convolved by
    PyTorch's own kernels, which cost it little.
    """
    return device.type == "cpu" and any(_overruns(module) for module in network.modules())


def convolutions(unsafe: bool) -> AbstractContextManager[None]:
    """Return a context for a forward pass and its backward pass: without oneDNN where that `is_unsafe`."""
    return torch.backends.mkldnn.flags(enabled=False) if unsafe else nullcontext()


def _overruns(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and 1 < module.in_channels // module.groups < 8
    )
