"""Each measure of calibration against scikit-learn or its formula written out."""

import numpy as np
import pytest

from pipeline.evaluation import calibration


@pytest.fixture
def answers():
    """(logits, labels) of 500 images in 10 classes, right about half of the time."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 10, 500)
    logits = rng.normal(size=(500, 10)).astype(np.float32)
    logits[np.arange(500), labels] += 1.5
    return logits, labels


def test_nll_is_scikit_learns_log_loss(answers):
    from sklearn import metrics  # takes seconds to import

    logits, labels = answers
    assert calibration.nll(logits, labels) == pytest.approx(metrics.log_loss(labels, calibration.probabilities(logits)))


def test_nll_and_softmax_bear_huge_logits():
    logits = np.array([[1e4, 0.0], [0.0, -1e4]], np.float32)
    assert calibration.probabilities(logits).tolist() == [[1, 0], [1, 0]]
    assert calibration.nll(logits, np.array([0, 0])) == 0


def test_ece_is_the_sum_over_bins_written_out(answers):
    logits, labels = answers
    probabilities = calibration.probabilities(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_ece_of_a_sure_model_is_its_error():
    probabilities = np.eye(4)[[0, 1, 2, 3]]
    assert calibration.expected_calibration_error(probabilities, np.array([0, 1, 2, 0])) == pytest.approx(0.25)
    assert calibration.expected_calibration_error(probabilities, np.arange(4)) == 0


def test_reliability_counts_every_image_once(answers):
    logits, labels = answers
    _, accuracy, images = calibration.reliability(calibration.probabilities(logits), labels)
    assert images.sum() == 500
    assert (accuracy * images).sum() == pytest.approx((logits.argmax(axis=1) == labels).sum())
