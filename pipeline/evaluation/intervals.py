"""Intervals and paired tests: of accuracies over images, and of speeds over turns.

`teacher` and `candidate` are boolean arrays of shape (images,): which images each got right, in the same order. Pairing
them image by image is what makes small differences visible: both mostly fail on the same images. Speeds are paired in
the same way, turn by turn: what slows the machine down for a while slows all candidates of that turn down.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records.measures import Estimate

TURNS = 8
"""Turns that every candidate takes in each measurement of speed: the fewest with which `typical` is exact at 99 %."""


def bootstrap_drop(
    teacher: NDArray[np.bool_], candidate: NDArray[np.bool_], confidence: float, resamples: int, seed: int
) -> Estimate:
    """Return the drop in accuracy from teacher to candidate with its bootstrap percentile interval.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, over images. A pair has only four
    outcomes, so drawing images with replacement is drawing their four counts from a multinomial distribution: no
    resample is ever written out, as `scipy.stats.bootstrap` would (2,000 of 10,000 images each).

    Where no pair differs a bootstrap cannot see any spread; then the interval is what zero differences among so many
    images still allow (Clopper and Pearson's bound for zero events).
    """
    images = len(teacher)
    only_teacher = int(np.sum(teacher & ~candidate))
    only_candidate = int(np.sum(candidate & ~teacher))
    if only_teacher + only_candidate == 0:
        bound = float(_binomial(0, images).proportion_ci(confidence, "exact").high)
        return Estimate(value=0.0, low=-bound, high=bound)
    both = int(np.sum(teacher & candidate))
    outcomes = np.array([only_teacher, only_candidate, both, images - only_teacher - only_candidate - both]) / images
    counts = np.random.default_rng(seed).multinomial(images, outcomes, size=resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / images, [tail, 1 - tail])
    return Estimate(value=(only_teacher - only_candidate) / images, low=float(low), high=float(high))


def share(successes: int, trials: int, confidence: float) -> Estimate:
    """Return a proportion with its score interval (Wilson 1927, https://doi.org/10.2307/2276774)."""
    interval = _binomial(successes, trials).proportion_ci(confidence, "wilson")
    return Estimate(value=successes / trials, low=float(interval.low), high=float(interval.high))


def mcnemar(teacher: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> float:
    """Return the exact two-sided p of McNemar's test (https://doi.org/10.1007/BF02295996).

    Of the images that exactly one of the two gets right, were both equally accurate, each would win half.
    """
    only_teacher = int(np.sum(teacher & ~candidate))
    differing = only_teacher + int(np.sum(candidate & ~teacher))
    return float(_binomial(only_teacher, differing).pvalue) if differing else 1.0


def _binomial(successes: int, trials: int) -> Any:
    """Return scipy's test of so many successes against one half, which knows the intervals too."""
    from scipy import stats  # imported here: whoever only measures speeds need not wait a second for it

    return stats.binomtest(successes, trials)


def typical(turns: Sequence[float], confidence: float) -> Estimate:
    """Return the typical one of some positive measurements (speeds or times) with its interval; both on a log scale.

    Hodges and Lehmann's estimate, the median of all pairwise means, and the interval that inverts Wilcoxon's signed-rank
    test (https://doi.org/10.1214/aoms/1177704172): a turn that something else on the machine disturbed moves neither
    far, and for the ratio of two candidates the level is exact whatever the noise, since the difference of two
    measurements with the same noise is symmetric. With too few turns for `confidence` (fewer than 6 for 95 %) the
    interval is the range of the turns, whose level is lower.

    Args:
        turns: one measurement per turn; at least one.
        confidence: level of the interval.
    """
    logs = np.log(np.asarray(turns, dtype=np.float64))
    first, second = np.triu_indices(len(logs))
    means = np.sort((logs[first] + logs[second]) / 2)
    left_out = _left_out(len(logs), confidence)
    value, low, high = np.exp([np.median(means), means[left_out], means[-1 - left_out]])
    return Estimate(value=float(value), low=float(low), high=float(high))


def ratio(mine: Sequence[float], theirs: Sequence[float], confidence: float) -> Estimate:
    """Return how many times `theirs` is contained in `mine`, turn by turn: what `typical` says of the quotients."""
    return typical([one / other for one, other in zip(mine, theirs, strict=True)], confidence)


@functools.cache
def _left_out(turns: int, confidence: float) -> int:
    """Return how many of the extreme pairwise means at each end lie outside the interval.

    The signed-rank statistic of n turns is the sum of a random subset of 1..n; its distribution is theirs convolved.
    """
    distribution = np.ones(1)
    for rank in range(1, turns + 1):
        distribution = np.convolve(distribution, [0.5, *[0.0] * (rank - 1), 0.5])
    return max(0, int(np.searchsorted(np.cumsum(distribution), (1 - confidence) / 2, side="right")) - 1)
