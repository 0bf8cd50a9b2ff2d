"""The batches of an epoch: which rows each process sees, and as which view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.split import Split
from pipeline.data.views import augment
from pipeline.data.views.row_generator import RowGenerator
from pipeline.errors import SettingsError
from pipeline.models.spec import ModelSpec
from pipeline.settings.training import Fit
from pipeline.training.distributed import ranks
from pipeline.training.validation import to_input


def steps_per_epoch(fit: Fit, images: int) -> int:
    """Return how many whole batches `images` give; what is left over differs from epoch to epoch."""
    return images // fit.batch_size


def check_batch(section: str, fit: Fit, images: int, processes: int) -> None:
    """Raise `SettingsError` unless `images` fill a batch that `processes` can share evenly."""
    if fit.batch_size > images:
        raise SettingsError(
            f"{section}.batch_size is {fit.batch_size}, but there are {images} training images: choose at most that many"
        )
    if fit.batch_size % processes:
        raise SettingsError(
            f"{section}.batch_size is {fit.batch_size}, which {processes} processes cannot share evenly: "
            f"choose a multiple of {processes}, or another distributed.nproc"
        )


def my_batches(images: int, batch_size: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return (steps, batch_size / processes) indices: this process's share of every batch of a freshly shuffled epoch.

    Every process shuffles alike and takes its own slice, so that together they see each image at most once.
    """
    order = np.random.default_rng([seed, epoch]).permutation(images)
    steps = images // batch_size
    batches = order[: steps * batch_size].reshape(steps, ranks.world(), -1)
    return batches[:, ranks.rank()]


@dataclass(frozen=True)
class Batch:
    """What one process learns from in one step."""

    rows: NDArray[np.int64]
    """(N,) indices into the training split."""
    view: Tensor
    """(N, C, H, W) float: the images as the network takes them, each seen at random."""
    labels: Tensor
    """(N,) int64."""


@dataclass(frozen=True)
class Batches:
    """The training split as `fit` has it seen. What is seen of a row depends on `seed` and epoch, not on the process."""

    split: Split
    spec: ModelSpec
    fit: Fit
    seed: int
    device: torch.device

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return steps_per_epoch(self.fit, len(self.split))

    @property
    def always_alike(self) -> bool:
        """Whether every epoch shows the same view of an image."""
        return not (self.fit.crop_padding or self.fit.horizontal_flip or self.fit.random_erasing)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's share of each batch."""
        labels = torch.from_numpy(self.split.labels)
        for rows in my_batches(len(self.split), self.fit.batch_size, epoch, self.seed):
            yield Batch(rows, self.view(rows, epoch), labels[rows].to(self.device, non_blocking=True))

    def view(self, rows: NDArray[np.int64], epoch: int) -> Tensor:
        """Return (N, C, H, W) float: what `epoch` shows of the images at `rows`."""
        generator = RowGenerator(self.seed, epoch, rows)
        images = torch.from_numpy(self.split.batch(rows)).to(self.device, non_blocking=True)
        images = augment.crop_and_flip(images, self.fit.crop_padding, self.fit.horizontal_flip, generator)
        return augment.erase(to_input(images, self.spec, self.device), self.fit.random_erasing, generator)
