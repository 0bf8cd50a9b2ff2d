"""A pruner's turn on a network: on which images, and what it adds to the spec."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.split import Split
from pipeline.export import onnx_graph
from pipeline.models import checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.protocols import Pruner

_BATCH = 64


def prune_once(
    pruner: Pruner, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]
) -> ModelSpec:
    """Prune `network` in place and return the spec that rebuilds it."""
    return spec.model_copy(update={"pruning": (*spec.pruning, pruner(spec, network, batches))})


def rehearse(
    pruners: Sequence[Pruner], spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]
) -> None:
    """Give each pruner its turn on a copy, without recovery: what a later one cannot reach must not cost a training."""
    network = copy.deepcopy(network)
    with onnx_graph.quiet():
        for pruner in pruners:
            spec = prune_once(pruner, spec, network, batches)


def batches_of(split: Split, spec: ModelSpec, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (normalised images (N, C, H, W), labels (N,)) of `split` in random order, without end."""
    chance = np.random.default_rng(seed)
    while True:
        rows = chance.choice(len(split), min(_BATCH, len(split)), replace=False)
        yield checkpoint.normalise(spec, torch.from_numpy(split.batch(rows))), torch.from_numpy(split.labels[rows])
