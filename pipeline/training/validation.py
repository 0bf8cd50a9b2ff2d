"""Accuracy and loss of a network on a split, calculated by all processes together."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.split import Split
from pipeline.models import checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.training.distributed import ranks

EVALUATION_BATCH = 500


@torch.inference_mode()
def evaluate(network: nn.Module, spec: ModelSpec, split: Split) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of `network` on `split` in float32, each process looking at its share."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for indices in np.array_split(np.arange(len(split)), math.ceil(len(split) / EVALUATION_BATCH))[
        ranks.rank() :: ranks.world()
    ]:
        logits = network(to_input(torch.from_numpy(split.batch(indices)), spec, device)).float()
        labels = torch.from_numpy(split.labels[indices]).to(device)
        sums[0] += (logits.argmax(1) == labels).sum()
        sums[1] += F.cross_entropy(logits, labels, reduction="sum")
    network.train(was_training)
    correct, loss = (ranks.total(sums) / len(split)).tolist()
    return correct, loss


def to_input(images: Tensor, spec: ModelSpec, device: torch.device) -> Tensor:
    """(N, C, H, W) uint8 -> the float images that the network takes, on `device` and with the channels last."""
    return checkpoint.normalise(spec, images.to(device)).contiguous(memory_format=torch.channels_last)
