"""A small prepared data directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data import shards

LABELS = ("cat", "dog", "owl")


def make(directory: Path, shard_bytes: int = shards.SHARD_BYTES) -> tuple[np.ndarray, np.ndarray]:
    """Write random data and return the images and labels of train: 50 images of 2x3x4."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 2, 3, 4), dtype=np.uint8)
    labels = random.integers(0, 3, 50)
    splits = {"train": (images, labels), "validation": (images[:7], labels[:7]), "test": (images[7:20], labels[7:20])}
    shards.write(directory, name="toy", labels=LABELS, splits=splits, shard_bytes=shard_bytes)
    return images, labels
