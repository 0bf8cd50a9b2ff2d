import itertools

import numpy as np
import pytest

from pipeline.serving.promotion.drift import drift


def exact(before, after):
    """The p-value over all swaps of all pairs: the reference that resampling approaches."""

    def distance(one, two):
        classes = set(before) | set(after)
        return sum(abs(one.count(label) - two.count(label)) for label in classes) / (2 * len(one))

    seen = distance(before, after)
    swaps = list(itertools.product([False, True], repeat=len(before)))
    as_far = 0
    for swap in swaps:
        one = [b if s else a for a, b, s in zip(before, after, swap, strict=True)]
        two = [a if s else b for a, b, s in zip(before, after, swap, strict=True)]
        as_far += distance(one, two) >= seen - 1e-12
    return seen, as_far / len(swaps)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_exact_test_up_to_its_resamples(seed):
    chance = np.random.default_rng(seed)
    before, after = (chance.integers(0, 3, 9).tolist() for _ in range(2))
    distance, p = drift(before, after)
    wanted = exact(before, after)
    assert distance == pytest.approx(wanted[0])
    assert p == pytest.approx(wanted[1], abs=0.05)


def test_the_same_predictions_have_not_drifted():
    assert drift([1, 2, 3, 3], [1, 2, 3, 3]) == (0.0, 1.0)


def test_predictions_that_only_change_places_keep_their_distribution():
    assert drift([0, 1] * 10, [1, 0] * 10)[0] == 0.0


def test_everything_in_one_class_is_as_far_as_it_goes():
    distance, p = drift([0] * 32, [1] * 32)
    assert distance == 1.0
    assert p < 0.001


def test_versions_that_differ_by_chance_are_rarely_called_different():
    chance = np.random.default_rng(3)
    called = 0
    for _ in range(40):
        pairs = chance.integers(0, 4, (2, 32))
        called += drift(pairs[0].tolist(), pairs[1].tolist())[1] < 0.01
    assert called <= 2
