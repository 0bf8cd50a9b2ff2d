"""Who a process is among those that train one network together. Alone, it is rank 0 of 1."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that reports and writes files."""
    return rank() == 0


def device() -> torch.device:
    """The device of this process: a GPU of its own where there are GPUs, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def share(network: nn.Module, strategy: str) -> nn.Module:
    """Return `network` trained together by all processes as `strategy` (a file in `strategies/`) does it; alone, itself."""
    if world() == 1:
        return network
    return importlib.import_module(f"pipeline.training.distributed.strategies.{strategy}").share(network, device())


def mean_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all processes."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= world()


def copy_from_main_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of the main process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def agree_on_buffers_(module: nn.Module) -> None:
    """Make the buffers of `module` equal in all processes: floats by their mean, the rest by the main one's."""
    buffers = list(module.buffers())
    mean_(buffer for buffer in buffers if buffer.is_floating_point())
    copy_from_main_(buffer for buffer in buffers if not buffer.is_floating_point())


def total(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes."""
    if world() > 1:
        dist.all_reduce(values)
    return values


@contextlib.contextmanager
def joined(backend: str, meeting: Path) -> Iterator[None]:
    """Join the processes that torchrun started and leave them at the end; alone, do nothing.

    Args:
        backend: 'gloo' or 'nccl'.
        meeting: file by which they find each other; it must not exist before.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    if size == 1:
        yield
        return
    # Torch's own file:// URL cannot hold a blank.
    store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]  # documented, but not in its __all__
    dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
