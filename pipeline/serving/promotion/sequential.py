"""Tests that may be looked at after every request: is a mean above a limit, is it below, or is that not known yet?

Requests come one at a time and nobody knows how many there will be, so a test that is planned for a number of them is
either too late or, looked at early, wrong more often than it says. These are tests by betting. A gambler starts with 1 and
bets on each next observation at odds that are fair, or worse for him, if the mean respects the limit. His capital is then a
nonnegative supermartingale, and the chance that it ever reaches 1/alpha is at most alpha (Ville 1939, *Etude critique de la
notion de collectif*, chapter 5; Waudby-Smith and Ramdas 2024, https://doi.org/10.1093/jrsssb/qkad009). That holds whenever
one stops, and for observations that depend on each other, as long as the mean of the next one, given all before it,
respects the limit.

He splits his capital among a few bets, each the best one against some other mean; for observations of 0 or 1 each is the
likelihood ratio of that mean to the limit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ODDS_ABOVE = (4 / 3, 2.0, 8.0, 256.0)
"""The means that bets on "above" are best against, by their odds in units of the limit's odds."""
_ODDS_BELOW = (0.0, 1 / 4, 1 / 2, 3 / 4)


class Evidence:
    """The capital of a gambler who bets that the mean of observations in [0, 1] is beyond `limit`, on one side.

    Args:
        limit: strictly between 0 and 1.
        odds: of the means to bet on, each in units of the limit's odds; all above 1 or all below.
    """

    def __init__(self, limit: float, odds: tuple[float, ...]) -> None:
        if not 0.0 < limit < 1.0:
            raise ValueError(f"the limit of a mean in [0, 1] is {limit}: it must be strictly between")
        scaled = np.asarray(odds) * limit / (1.0 - limit)
        means = scaled / (1.0 + scaled)
        self._limit = limit
        self._stakes: NDArray[np.float64] = (means - limit) / (limit * (1.0 - limit))
        self._logs: NDArray[np.float64] = np.full(len(odds), -math.log(len(odds)))
        self._highest: NDArray[np.float64] = np.zeros(())

    def add(self, seen: ArrayLike) -> None:
        """Bet on one observation; an array of them is one of each of as many streams that are tested alike."""
        stakes = self._stakes * (np.asarray(seen, np.float64)[..., None] - self._limit)
        with np.errstate(divide="ignore"):  # a bet that all observations are 0 is lost for good with the first other
            self._logs = self._logs + np.log1p(np.maximum(stakes, -1.0))
        self._highest = np.maximum(self._highest, np.logaddexp.reduce(self._logs, axis=-1))

    @property
    def log_highest(self) -> NDArray[np.float64]:
        """Logarithm of the largest capital so far, of each stream."""
        return self._highest

    def shows(self, alpha: float) -> NDArray[np.bool_]:
        """Return whether the limit is passed, for each stream: wrong with a chance of at most `alpha`, at any time."""
        return self._highest >= -math.log(alpha)


def above(limit: float) -> Evidence:
    """Return a gambler who bets that the mean is above `limit`."""
    return Evidence(limit, _ODDS_ABOVE)


def below(limit: float) -> Evidence:
    """Return a gambler who bets that the mean is below `limit`."""
    return Evidence(limit, _ODDS_BELOW)


class Limit:
    """Whether the mean of observations in [0, 1] keeps to a limit.

    Args:
        limit: 0 < limit <= 1; a limit of 1 is always kept.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.count, self.total = limit, 0, 0.0
        self._bounded = limit < 1.0
        if self._bounded:
            self._above, self._below = above(limit), below(limit)

    def add(self, seen: float) -> None:
        """Take one observation into account."""
        self.count += 1
        self.total += seen
        if self._bounded:
            self._above.add(seen)
            self._below.add(seen)

    @property
    def mean(self) -> float:
        """Of the observations; 0 without any."""
        return self.total / self.count if self.count else 0.0

    def broken(self, alpha: float) -> bool:
        """Return whether the mean is above the limit; wrong with a chance of at most `alpha`."""
        return self._bounded and bool(self._above.shows(alpha))

    def kept(self, alpha: float) -> bool:
        """Return whether the mean is below the limit; wrong with a chance of at most `alpha`."""
        return not self._bounded or bool(self._below.shows(alpha))
