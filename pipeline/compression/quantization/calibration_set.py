"""Which training images a quantizer looks at: each class in its share, and a fingerprint of the set."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.split import open_split
from pipeline.errors import ModelError


def calibration_images(
    data: Path, count: int, shape: tuple[int, int, int], seed: int
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return `count` training images (count, C, H, W), each class in its share, and what tells this set from others.

    Raises `ModelError` where there are too few, or they are not of `shape`.
    """
    split = open_split(data, "train")
    if count > len(split):
        raise ModelError(
            f"quantize.calibration_images is {count}, but {data} has {len(split)} training images: set at most that"
        )
    chosen = np.sort(_stratified(split.labels, count, np.random.default_rng(seed)))
    images = split.batch(chosen)
    if images.shape[1:] != shape:
        raise ModelError(
            f"{data} has images of {images.shape[1:]}, the model takes {shape}: they are not of one data set"
        )
    fingerprint = hashlib.sha256(images.tobytes()).hexdigest()
    classes = np.bincount(split.labels[chosen])
    return images, {"images": count, "sha256": fingerprint, "per_class": classes.tolist(), "seed": seed}


def _stratified(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` indices into `labels`, drawn without replacement, each class as often as its share asks for."""
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = np.flatnonzero(shuffled == label)
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return order[np.argsort(place, kind="stable")[:count]]
