"""The statistics behind a verdict: intervals, paired tests, calibration. numpy and nothing else.

`teacher` and `candidate` are boolean arrays of shape (images,): which images each got right, in the same order. Pairing
them image by image is what makes small differences visible: both mostly fail on the same images.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def bootstrap_drop(
    teacher: NDArray[np.bool_], candidate: NDArray[np.bool_], confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return the drop in accuracy from teacher to candidate and its bootstrap percentile interval: (value, low, high).

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, over images. A pair has only four
    outcomes, so drawing images with replacement is drawing their four counts from a multinomial distribution: no
    resample is ever written out.

    Where no pair differs a bootstrap cannot see any spread; then the interval is what zero differences among so many
    images still allow (Clopper and Pearson's bound for zero events).
    """
    images = len(teacher)
    only_teacher = int(np.sum(teacher & ~candidate))
    only_candidate = int(np.sum(candidate & ~teacher))
    tail = (1 - confidence) / 2
    if only_teacher + only_candidate == 0:
        bound = 1 - tail ** (1 / images)
        return 0.0, -bound, bound
    both = int(np.sum(teacher & candidate))
    outcomes = np.array([only_teacher, only_candidate, both, images - only_teacher - only_candidate - both]) / images
    counts = np.random.default_rng(seed).multinomial(images, outcomes, size=resamples)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / images, [tail, 1 - tail])
    return (only_teacher - only_candidate) / images, float(low), float(high)


def wilson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927, https://doi.org/10.2307/2276774)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    scale = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(teacher: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> float:
    """Return the exact two-sided p of McNemar's test (https://doi.org/10.1007/BF02295996).

    Of the images that exactly one of the two gets right, were both equally accurate, each would win half.
    """
    only_teacher = int(np.sum(teacher & ~candidate))
    only_candidate = int(np.sum(candidate & ~teacher))
    differing = only_teacher + only_candidate
    term, total = 1, 0  # whole numbers: exact however many images differ
    for wins in range(min(only_teacher, only_candidate) + 1):
        total += term
        term = term * (differing - wins) // (wins + 1)
    return min(1.0, 2 * total / 2**differing)


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count images by [true label][predicted label]: (classes, classes)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def recall(confusion: NDArray[np.int64]) -> list[float | None]:
    """Return the share of each class's images that are recognised; None for a class without images."""
    return [float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(confusion)]


def churn(teacher: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> float:
    """Return the share of all images that the teacher gets right and the candidate gets wrong."""
    return float(np.mean(teacher & ~candidate))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, C) logits -> (N, C) probabilities."""
    return np.exp(_log_softmax(logits))


def nll(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood of the true labels, in nats."""
    return float(-_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def reliability(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return mean confidence, accuracy and number of images of each bin of equal width; 0 where a bin is empty.

    A prediction's confidence is its highest probability; bin m holds confidences in ((m-1)/bins, m/bins].
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    some = np.maximum(images, 1)
    return (
        np.bincount(place, weights=confidence, minlength=bins) / some,
        np.bincount(place, weights=right, minlength=bins) / some,
        images,
    )


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = 15) -> float:
    """Return the mean distance of accuracy from confidence over `bins` equal bins, weighted by their images.

    Naeini et al. 2015 (https://doi.org/10.1609/aaai.v29i1.9602), with the 15 bins of Guo et al. 2017
    (https://arxiv.org/abs/1706.04599).
    """
    confidence, accuracy, images = reliability(probabilities, labels, bins)
    return float(np.sum(images * np.abs(accuracy - confidence)) / images.sum())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
