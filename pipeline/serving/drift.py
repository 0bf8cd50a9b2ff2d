"""Whether two versions predict the same classes equally often: a paired permutation test of the total variation distance.

Both versions answer the same inputs. If it made no difference which of them answered, each pair of predictions might as
well be swapped; so the distance that was seen is compared with those after random swaps. Nothing is assumed of the
classes or of how many inputs there are. (Permutation tests: https://doi.org/10.1007/b98854, chapter 3; the share of
resamples counts the seen one, https://doi.org/10.2202/1544-6115.1585.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_SEED = 17


def drift(before: Sequence[int], after: Sequence[int]) -> tuple[float, float]:
    """Return (distance, p): how far apart the predicted classes of the same inputs are spread, and how likely by chance.

    The total variation distance is the share of inputs that would have to move to another class for both versions to
    predict every class equally often: 0 to 1. Two versions that only swap some predictions have distance 0.
    """
    classes, numbered = np.unique(np.concatenate([before, after]), return_inverse=True)
    first, second = numbered[: len(before)], numbered[len(before) :]
    seen = _distance(first, second, len(classes))
    differs = first != second  # a pair of equals swapped is no change
    chance = np.random.default_rng(_SEED)
    swaps = chance.random((_RESAMPLES, len(first))) < 0.5
    as_far = sum(
        _distance(np.where(swap & differs, second, first), np.where(swap & differs, first, second), len(classes))
        >= seen - 1e-12
        for swap in swaps
    )
    return seen, (1 + as_far) / (1 + _RESAMPLES)


def _distance(first: NDArray[np.intp], second: NDArray[np.intp], classes: int) -> float:
    counts = np.bincount(first, minlength=classes) - np.bincount(second, minlength=classes)
    return float(np.abs(counts).sum() / (2 * len(first)))
