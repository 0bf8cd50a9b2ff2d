"""Every process holds the whole network; gradients are averaged while they are computed.

Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (https://arxiv.org/abs/2006.15704).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def share(network: nn.Module, device: torch.device) -> nn.Module:
    """Return `network` with averaged gradients. Batch-norm statistics stay each process's own: average them yourself."""
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # once an epoch is enough, and a mean over all is better than rank 0's
        gradient_as_bucket_view=True,
        static_graph=True,
    )
