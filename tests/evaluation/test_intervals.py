"""Each statistic against scikit-learn, scipy or its formula written out; then what must always hold."""

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation import statistics


@pytest.fixture
def pairs():
    """2,000 images: the teacher right on 92 %, the candidate on most of the same."""
    rng = np.random.default_rng(3)
    teacher = rng.random(2000) < 0.92
    candidate = np.where(rng.random(2000) < 0.05, rng.random(2000) < 0.5, teacher)
    return teacher, candidate


@pytest.fixture
def answers():
    """(logits, labels) of 500 images in 10 classes, right about half of the time."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 10, 500)
    logits = rng.normal(size=(500, 10)).astype(np.float32)
    logits[np.arange(500), labels] += 1.5
    return logits, labels


def test_bootstrap_agrees_with_one_that_draws_the_images_themselves(pairs):
    teacher, candidate = pairs
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(teacher), (4000, len(teacher)))
    drops = (teacher[drawn].astype(float) - candidate[drawn]).mean(axis=1)
    value, low, high = statistics.bootstrap_drop(teacher, candidate, 0.95, 4000, seed=1)
    assert value == pytest.approx(teacher.mean() - candidate.mean())
    assert [low, high] == pytest.approx(np.quantile(drops, [0.025, 0.975]), abs=6e-4)


def test_bootstrap_agrees_with_the_normal_approximation_of_paired_shares(pairs):
    teacher, candidate = pairs
    difference = teacher.astype(float) - candidate
    half = 1.96 * difference.std() / np.sqrt(len(difference))
    value, low, high = statistics.bootstrap_drop(teacher, candidate, 0.95, 20_000, seed=1)
    assert [low, high] == pytest.approx([value - half, value + half], abs=4e-4)


def test_bootstrap_is_the_same_for_the_same_seed_and_wider_for_more_confidence(pairs):
    first = statistics.bootstrap_drop(*pairs, 0.95, 2000, seed=7)
    assert first == statistics.bootstrap_drop(*pairs, 0.95, 2000, seed=7)
    _, low, high = statistics.bootstrap_drop(*pairs, 0.99, 2000, seed=7)
    assert low < first[1] < first[0] < first[2] < high


def test_bootstrap_without_a_differing_pair_still_knows_how_little_it_saw():
    same = np.ones(180, bool)
    value, low, high = statistics.bootstrap_drop(same, same, 0.95, 2000, seed=0)
    assert value == 0
    assert high == pytest.approx(stats.binomtest(0, 180).proportion_ci(0.95, "exact").high) == -low


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (9, 10), (9150, 10_000), (50, 50)])
def test_wilson_is_scipys(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert statistics.wilson(successes, trials, 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("only_teacher", "only_candidate"), [(0, 0), (5, 5), (1, 9), (40, 20), (900, 700)])
def test_mcnemar_is_the_exact_binomial_test(only_teacher, only_candidate):
    teacher = np.array([True] * only_teacher + [False] * only_candidate + [True] * 30)
    candidate = np.array([False] * only_teacher + [True] * only_candidate + [True] * 30)
    differing = only_teacher + only_candidate
    expected = stats.binomtest(only_teacher, differing).pvalue if differing else 1.0
    assert statistics.mcnemar(teacher, candidate) == pytest.approx(expected)


def test_confusion_and_recall_are_scikit_learns(answers):
    from sklearn import metrics  # takes seconds to import

    logits, labels = answers
    predicted = logits.argmax(axis=1)
    confusion = statistics.confusion_matrix(labels, predicted, 10)
    assert (confusion == metrics.confusion_matrix(labels, predicted, labels=range(10))).all()
    assert statistics.recall(confusion) == pytest.approx(metrics.recall_score(labels, predicted, average=None))


def test_a_class_without_images_has_no_recall():
    confusion = statistics.confusion_matrix(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)
    assert statistics.recall(confusion) == [0.5, None, 1.0]


def test_churn_counts_only_what_was_right_before():
    teacher = np.array([True, True, False, False])
    assert statistics.churn(teacher, np.array([True, False, True, False])) == 0.25
    assert statistics.churn(teacher, teacher) == 0


def test_nll_is_scikit_learns_log_loss(answers):
    from sklearn import metrics  # takes seconds to import

    logits, labels = answers
    assert statistics.nll(logits, labels) == pytest.approx(metrics.log_loss(labels, statistics.softmax(logits)))


def test_nll_and_softmax_bear_huge_logits():
    logits = np.array([[1e4, 0.0], [0.0, -1e4]], np.float32)
    assert statistics.softmax(logits).tolist() == [[1, 0], [1, 0]]
    assert statistics.nll(logits, np.array([0, 0])) == 0


def test_ece_is_the_sum_over_bins_written_out(answers):
    logits, labels = answers
    probabilities = statistics.softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert statistics.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_ece_of_a_sure_model_is_its_error():
    probabilities = np.eye(4)[[0, 1, 2, 3]]
    assert statistics.expected_calibration_error(probabilities, np.array([0, 1, 2, 0])) == pytest.approx(0.25)
    assert statistics.expected_calibration_error(probabilities, np.arange(4)) == 0


def test_reliability_counts_every_image_once(answers):
    logits, labels = answers
    _, accuracy, images = statistics.reliability(statistics.softmax(logits), labels)
    assert images.sum() == 500
    assert (accuracy * images).sum() == pytest.approx((logits.argmax(axis=1) == labels).sum())
