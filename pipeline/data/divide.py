"""What is done to each data set before training: drop duplicates, set validation images aside.

Nothing here draws random numbers: which images go where follows from hashes of their pixels and the seed, so the same
pixels are split in the same way by every version of every library.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Images, Labels
from pipeline.data.shards import content_hashes
from pipeline.errors import DataError


def divide(
    original: Mapping[str, tuple[Images, Labels]], validation_images: int, seed: int
) -> tuple[dict[str, tuple[Images, Labels]], dict[str, int]]:
    """Return (``{"train", "validation", "test"}``, why -> images dropped) from the original 'train' and 'test'.

    The test split stays as it is, so that accuracies compare with published ones. Of the original training images go:
    those that occur in test, those whose copies carry different labels, and all but the first of equal copies.
    """
    images, labels = original["train"]
    kept, dropped = _without_duplicates(images, labels, original["test"][0])
    images, labels = images[kept], labels[kept]
    if validation_images >= len(images):
        raise DataError(
            f"validation_images is {validation_images}, but there are only {len(images)} training images without "
            f"duplicates: lower datasets.<name>.validation_images in params.yaml"
        )
    aside = stratified(images, labels, validation_images, seed)
    splits = {
        "train": (images[~aside], labels[~aside]),
        "validation": (images[aside], labels[aside]),
        "test": original["test"],
    }
    return splits, dropped


def stratified(images: Images, labels: Labels, count: int, seed: int) -> NDArray[np.bool_]:
    """Return a mask of `count` images, each class with its share (largest remainders round up)."""
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quotas, remainders = np.divmod(count * sizes, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    order = np.argsort(content_hashes(images, key=str(seed)), kind="stable")
    chosen = np.zeros(len(labels), bool)
    for number in range(len(classes)):
        chosen[order[inverse[order] == number][: quotas[number]]] = True
    return chosen


def _without_duplicates(images: Images, labels: Labels, test: Images) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Return a mask of the training images to keep and how many fell for which reason."""
    hashes = content_hashes(images)
    in_test = np.isin(hashes, content_hashes(test))
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    lowest, highest = np.full(len(first), labels.max()), np.full(len(first), labels.min())
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    conflicting = (lowest != highest)[group] & ~in_test
    repeated = np.ones(len(labels), bool)
    repeated[first] = False
    repeated &= ~in_test & ~conflicting
    dropped = {"in_test": in_test, "conflicting_labels": conflicting, "duplicate": repeated}
    return ~(in_test | conflicting | repeated), {why: int(mask.sum()) for why, mask in dropped.items()}
