"""How training images look, in numbers that are the same on every machine: per channel and per class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import ClassBaseline, Images


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel / 255, from exact integer sums: the same on every machine."""
    pairs = [_moments(np.bincount(images[:, channel].reshape(-1), minlength=256)) for channel in range(images.shape[1])]
    return tuple(round(mean / 255, 6) for mean, _ in pairs), tuple(round(std / 255, 6) for _, std in pairs)


def _moments(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation of values 0 to 255 that occur so often."""
    values = np.arange(256)
    count, total, squares = (int(histogram @ power) for power in (values**0, values, values**2))
    return total / count, (squares / count - (total / count) ** 2) ** 0.5


def class_baseline(images: Images) -> ClassBaseline:
    """Return how the images (N, C, H, W) of one class look."""
    flat = images.reshape(len(images), -1)
    count = max(1, len(flat))
    mean = flat.sum(axis=0, dtype=np.int64) / count
    squares = np.einsum("np,np->p", flat, flat, dtype=np.int64) / count
    return ClassBaseline(
        images=len(flat),
        mean=round(float(mean.mean()), 2),
        std=round(float(np.sqrt((squares - mean**2).mean())), 2),
        mean_image=tuple(np.round(mean, 1).tolist()),
    )
