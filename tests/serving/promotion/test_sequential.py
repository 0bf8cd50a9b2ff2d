"""Tests by betting: against the likelihood ratio, their error rates by simulation, and what they find in how many steps."""

import math

import numpy as np
import pytest

from pipeline.serving.promotion.sequential import Limit, above, below


def likelihood_ratio(seen, limit, odds):
    """Mean, over the means that the odds name, of the chance of `seen` under them over its chance under the limit."""
    ratios = []
    for factor in odds:
        theta = factor * limit / (1 - limit) / (1 + factor * limit / (1 - limit))
        ratios.append(math.prod((theta if x else 1 - theta) / (limit if x else 1 - limit) for x in seen))
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize(("make", "odds"), [(above, (4 / 3, 2.0, 8.0, 256.0)), (below, (0.0, 1 / 4, 1 / 2, 3 / 4))])
@pytest.mark.parametrize("limit", [0.01, 0.1, 0.5])
def test_the_capital_is_the_likelihood_ratio(make, odds, limit):
    seen = np.random.default_rng(1).random(40) < limit
    evidence, highest = make(limit), 1.0
    for number, x in enumerate(seen, 1):
        evidence.add(float(x))
        highest = max(highest, likelihood_ratio(seen[:number], limit, odds))
    assert math.exp(evidence.log_highest) == pytest.approx(highest)


@pytest.mark.parametrize("make", [above, below])
@pytest.mark.parametrize(
    ("limit", "alpha"), [(0.01, 0.05), pytest.param(0.1, 0.05, marks=pytest.mark.extra), (0.5, 0.01)]
)
def test_at_the_limit_it_is_wrong_no_oftener_than_it_says_however_often_one_looks(make, limit, alpha):
    streams, steps = 2000, 1000
    chance, evidence = np.random.default_rng(17), make(limit)
    for _ in range(steps):
        evidence.add(chance.random(streams) < limit)
    wrong = evidence.shows(alpha).mean()
    assert 0 < wrong <= alpha + 3 * math.sqrt(alpha / streams)


@pytest.mark.parametrize("make", [above, below])
def test_shares_between_0_and_1_keep_the_error_rate_too(make):
    streams, limit, alpha = 2000, 0.2, 0.05
    chance, evidence = np.random.default_rng(18), make(limit)
    for _ in range(400):
        evidence.add(chance.beta(1.0, 4.0, streams))  # mean 0.2
    assert evidence.shows(alpha).mean() <= alpha


def test_a_mean_that_drifts_with_what_came_before_keeps_the_error_rate():
    streams, limit, alpha = 2000, 0.1, 0.05
    chance, evidence, last = np.random.default_rng(19), above(limit), np.zeros(2000)
    for _ in range(400):
        last = chance.random(streams) < np.where(last, 0.0, limit)  # never above the limit, given the past
        evidence.add(last)
    assert evidence.shows(alpha).mean() <= alpha


@pytest.mark.parametrize(
    ("limit", "share", "kept", "longest"),
    [
        (0.01, 0.0, True, 600),
        (0.01, 0.1, False, 200),
        (0.1, 0.02, True, 300),
        (0.5, 0.1, True, 60),
        (0.5, 0.9, False, 60),
    ],
)
def test_what_is_plain_is_found_soon(limit, share, kept, longest):
    chance, needed = np.random.default_rng(20), []
    for _ in range(50):
        one = Limit(limit)
        while not (one.kept(0.01) or one.broken(0.01)):
            one.add(float(chance.random() < share))
        assert one.kept(0.01) == kept
        needed.append(one.count)
    assert np.median(needed) <= longest


def test_nothing_failed_is_enough_after_a_number_that_can_be_reckoned():
    one = Limit(0.01)
    while not one.kept(0.01):
        one.add(0.0)
    assert 458 < one.count <= math.ceil(math.log(4 / 0.01) / -math.log(1 - 0.01))


def test_what_was_shown_once_stays_shown():
    one = Limit(0.01)
    for _ in range(700):
        one.add(0.0)
    one.add(1.0)
    assert one.kept(0.01)
    assert (one.count, one.mean) == (701, pytest.approx(1 / 701))


def test_a_limit_of_1_is_always_kept():
    one = Limit(1.0)
    one.add(1.0)
    assert one.kept(0.01)
    assert not one.broken(0.01)


def test_a_limit_of_0_can_never_be_shown_to_be_kept():
    with pytest.raises(ValueError, match="it must be strictly between"):
        Limit(0.0)
