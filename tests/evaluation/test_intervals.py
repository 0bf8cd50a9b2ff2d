"""Each interval and test against scipy, a simulation or its formula; then what must always hold."""

import math

import numpy as np
import pytest

from pipeline.evaluation import intervals


@pytest.fixture
def pairs():
    """2,000 images: the teacher right on 92 %, the candidate on most of the same."""
    rng = np.random.default_rng(3)
    teacher = rng.random(2000) < 0.92
    candidate = np.where(rng.random(2000) < 0.05, rng.random(2000) < 0.5, teacher)
    return teacher, candidate


def test_bootstrap_agrees_with_one_that_draws_the_images_themselves(pairs):
    teacher, candidate = pairs
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(teacher), (4000, len(teacher)))
    drops = (teacher[drawn].astype(float) - candidate[drawn]).mean(axis=1)
    found = intervals.bootstrap_drop(teacher, candidate, 0.95, 4000, seed=1)
    assert found.value == pytest.approx(teacher.mean() - candidate.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(drops, [0.025, 0.975]), abs=6e-4)


def test_bootstrap_agrees_with_the_normal_approximation_of_paired_shares(pairs):
    teacher, candidate = pairs
    difference = teacher.astype(float) - candidate
    half = 1.96 * difference.std() / np.sqrt(len(difference))
    found = intervals.bootstrap_drop(teacher, candidate, 0.95, 20_000, seed=1)
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], abs=4e-4)


def test_bootstrap_is_the_same_for_the_same_seed_and_wider_for_more_confidence(pairs):
    first = intervals.bootstrap_drop(*pairs, 0.95, 2000, seed=7)
    assert first == intervals.bootstrap_drop(*pairs, 0.95, 2000, seed=7)
    wider = intervals.bootstrap_drop(*pairs, 0.99, 2000, seed=7)
    assert wider.low < first.low < first.value < first.high < wider.high


def test_bootstrap_without_a_differing_pair_still_knows_how_little_it_saw():
    same = np.ones(180, bool)
    found = intervals.bootstrap_drop(same, same, 0.95, 2000, seed=0)
    assert found.value == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 180)) == -found.low


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (9, 10), (9150, 10_000), (50, 50)])
def test_a_share_has_wilsons_score_interval(stats, successes, trials):
    z, share = stats.norm.ppf(0.975), successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    found = intervals.share(successes, trials, 0.95)
    assert found.value == share
    assert [found.low, found.high] == pytest.approx([max(0, centre - half), min(1, centre + half)], abs=1e-12)


@pytest.mark.parametrize(("only_teacher", "only_candidate"), [(0, 0), (5, 5), (1, 9), (40, 20), (900, 700)])
def test_mcnemar_is_the_exact_binomial_test(only_teacher, only_candidate):
    teacher = np.array([True] * only_teacher + [False] * only_candidate + [True] * 30)
    candidate = np.array([False] * only_teacher + [True] * only_candidate + [True] * 30)
    differing, fewer = only_teacher + only_candidate, min(only_teacher, only_candidate)
    expected = min(1.0, 2 * sum(math.comb(differing, wins) for wins in range(fewer + 1)) / 2**differing)
    assert intervals.mcnemar(teacher, candidate) == pytest.approx(expected)


def disturbed(rng, shape):
    """Logs of speeds as a shared machine gives them: some per cent of noise, and turns that lose up to 60 %."""
    lost = np.where(rng.random(shape) < 0.15, np.log(1 - rng.uniform(0.1, 0.6, shape)), 0.0)
    return rng.normal(0, 0.05, shape) + lost


def test_the_signed_rank_interval_is_where_wilcoxons_test_turns(stats):
    turns = np.exp(np.random.default_rng(4).normal(7, 0.2, 8))
    found = intervals.typical(turns, 0.95)
    for bound, inward in ((found.low, 1), (found.high, -1)):
        inside, outside = (np.log(turns) - np.log(bound) - inward * step for step in (1e-6, -1e-6))
        assert stats.wilcoxon(inside, method="exact").pvalue > 0.05
        assert stats.wilcoxon(outside, method="exact").pvalue <= 0.05


@pytest.mark.parametrize("turns", [6, intervals.TURNS, 12])
def test_a_ratio_is_covered_as_often_as_the_level_says_however_disturbed_the_turns_are(turns):
    rng = np.random.default_rng(2)
    found = [
        intervals.ratio(np.exp(0.3 + disturbed(rng, turns)), np.exp(disturbed(rng, turns)), 0.95) for _ in range(3000)
    ]
    covered = np.mean([one.low <= np.exp(0.3) <= one.high for one in found])
    assert 0.94 < covered < 0.98


def test_what_hits_a_whole_round_does_not_move_a_ratio():
    rng = np.random.default_rng(1)
    machine = rng.uniform(0.2, 1.0, intervals.TURNS)
    found = intervals.ratio(machine * 1500, machine * 1000, 0.95)
    assert [found.low, found.value, found.high] == pytest.approx([1.5] * 3)


def test_one_disturbed_turn_moves_the_typical_one_little():
    calm = intervals.typical([1000.0, 1010, 990, 1005, 995, 1002, 998, 1001], 0.95)
    hit = intervals.typical([1000.0, 1010, 990, 1005, 995, 1002, 998, 100], 0.95)
    assert hit.value == pytest.approx(calm.value, rel=0.01)
    assert calm.low < calm.value < calm.high


def test_more_confidence_is_wider_and_too_few_turns_give_their_range():
    turns = np.exp(np.random.default_rng(3).normal(0, 0.1, 8))
    narrow, wide = (intervals.typical(turns, level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    few = intervals.typical([3.0, 1.0, 2.0], 0.95)
    assert (few.low, few.high) == (pytest.approx(1.0), pytest.approx(3.0))
    assert list(intervals.typical([7.0], 0.95).model_dump().values()) == pytest.approx([7.0] * 3)


def test_the_inverse_ratio_has_the_inverse_interval():
    rng = np.random.default_rng(8)
    one, other = np.exp(rng.normal(0, 0.1, 8)), np.exp(rng.normal(0.2, 0.1, 8))
    forth, back = intervals.ratio(one, other, 0.95), intervals.ratio(other, one, 0.95)
    assert [1 / back.high, 1 / back.value, 1 / back.low] == pytest.approx([forth.low, forth.value, forth.high])
