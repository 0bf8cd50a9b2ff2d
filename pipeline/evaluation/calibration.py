"""How far a model's confidence can be trusted: likelihood, reliability and calibration error of its logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special


def nll(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood of the true labels, in nats."""
    log_probabilities = special.log_softmax(logits.astype(np.float64), axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, C) logits -> (N, C) probabilities."""
    return np.asarray(special.softmax(logits.astype(np.float64), axis=1))


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
