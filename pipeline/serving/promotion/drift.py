"""Whether two versions predict the same classes equally often: a paired permutation test of the total variation distance.

Both versions answer the same inputs. If it made no difference which of them answered, each pair of predictions might as
well be swapped; so the distance that was seen is compared with those after random swaps. Nothing is assumed of the
classes or of how many inputs there are. (Permutation tests: https://doi.org/10.1007/b98854, chapter 3; the share of
resamples counts the seen one, https://doi.org/10.2202/1544-6115.1585.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RESAMPLES = 2000
_SEED = 17


def drift(before: Sequence[int], after: Sequence[int]) -> tuple[float, float]:
    """Return (distance, p): how far apart the predicted classes of the same inputs are spread, and how likely by chance.

    The total variation distance is the share of inputs that would have to move to another class for both versions to
    predict every class equally often: 0 to 1. Two versions that only swap some predictions have distance 0.
    """
    classes, numbered = np.unique(np.concatenate([before, after]), return_inverse=True)
    inputs, row = len(before), np.eye(len(classes))
    moved = row[numbered[:inputs]] - row[numbered[inputs:]]  # what a pair adds to the difference of the counts
    swaps = np.random.default_rng(_SEED).random((_RESAMPLES, inputs)) < 0.5
    distances = np.abs(np.where(swaps, -1.0, 1.0) @ moved).sum(axis=1) / (2 * inputs)
    seen = float(np.abs(moved.sum(axis=0)).sum() / (2 * inputs))
    return seen, (1 + int((distances >= seen - 1e-12).sum())) / (1 + _RESAMPLES)
