"""N:M sparsity: of every `m` weights that follow each other along the input channels, only the `n` largest stay.

2:4 is what NVIDIA's sparse tensor cores (Ampere and later) multiply at up to twice the rate: Mishra et al., "Accelerating
Sparse Deep Neural Networks", https://arxiv.org/abs/2104.08378. They want the pattern along the dimension that is summed
over; for a convolution TensorRT takes that to be the input channels, for each output and each place of the kernel:
https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/io-formats-sparsity.html
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.spec import ModelSpec, PruningStep

_log = logging.getLogger(__name__)


class NM:
    """Keeps the `n` largest of every `m` weights along the input channels of convolutions and linear layers.

    Only 2:4, only TensorRT, and only GPUs with sparse tensor cores can gain speed from it, in layers that are wide enough.
    On a CPU the model is as slow, and the file as large, as before. Layers whose inputs are no multiple of `m` stay whole.

    Args:
        n: weights that stay of every `m`.
        m: length of a run along the input channels.
    """

    def __init__(self, n: Annotated[int, Field(ge=1)] = 2, m: Annotated[int, Field(ge=2)] = 4) -> None:
        if n >= m:
            raise ValueError(f"n is {n} and m is {m}: n must be smaller than m, such as 2 of 4")
        self.n = n
        self.m = m

    def rounds(self, count: int) -> list[NM]:
        """Return this pruner alone, whatever `count` is: half a pattern is none."""
        return [self]

    @torch.no_grad()
    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Set weights of `network` to zero in place. Looks at no data.

        Raises `ModelError` where no layer fits the pattern, or where all that do have it already.
        """
        network.eval()
        layers = {
            name: layer.weight for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        }
        fitting = {name: weight for name, weight in layers.items() if weight.shape[1] % self.m == 0}
        if not fitting:
            raise ModelError(
                f"nothing was pruned: no layer of {spec.architecture} has a number of input channels that is a multiple of "
                f"pruner.m ({self.m}); choose widths that are, or another m"
            )
        patterned = {name: keep_largest(weight, self.n, self.m) for name, weight in fitting.items()}
        if all(torch.equal(patterned[name], weight) for name, weight in fitting.items()):
            raise ModelError(
                f"nothing was pruned: {spec.architecture} has at most {self.n} of every {self.m} weights already "
                f"(pruner.n, pruner.m); lower n, or leave this pruner out"
            )
        for name, weight in fitting.items():
            weight.copy_(patterned[name])
        left = [name for name in layers if name not in fitting]
        if left:
            _log.warning(
                "n_m: %s left whole: the input channels are no multiple of pruner.m (%d)", ", ".join(left), self.m
            )
        _log.warning(
            "n_m: %d of every %d weights of %d layers stay. Speed comes from 2:4 only, on GPUs with sparse tensor cores, from "
            "TensorRT, whose builder build_tensorrt tells to look for zeros; everywhere else the model is as slow as before, "
            "and the file stays as large",
            self.n, self.m, len(fitting),
        )  # fmt: skip
        return PruningStep(
            method="n_m",
            arguments={"n": self.n, "m": self.m},
            zeros={name: float((weight == 0).double().mean()) for name, weight in fitting.items()},
        )


def keep_largest(weight: Tensor, n: int, m: int) -> Tensor:
    """Return (outputs, inputs, ...) `weight` with zeros but for the `n` largest of every `m` along the inputs."""
    last = weight.movedim(1, -1)
    runs = last.reshape(-1, m)
    smallest = runs.abs().topk(m - n, dim=1, largest=False).indices
    return runs.scatter(1, smallest, 0.0).reshape(last.shape).movedim(-1, 1)


COMPONENT = NM
