"""Quality puts the statistics together without mixing up who is who."""

import numpy as np
import pytest

from pipeline.evaluation.intervals import mcnemar
from pipeline.evaluation.quality import churn, confusion_matrix, quality, recall, served_parity

SETTINGS = {"confidence": 0.95, "resamples": 500, "seed": 3}


@pytest.fixture(scope="module")
def answers():
    """(labels, teacher's logits, candidate's logits) of 600 images in 3 classes, the candidate noisier."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 600)
    teacher = rng.normal(size=(600, 3)).astype(np.float32)
    teacher[np.arange(600), labels] += 2.5
    return labels, teacher, teacher + rng.normal(size=(600, 3)).astype(np.float32)


def test_candidate_is_compared_with_the_teacher_image_by_image(answers):
    labels, teacher, candidate = answers
    found = quality(labels, candidate, teacher, **SETTINGS)
    theirs, mine = teacher.argmax(1), candidate.argmax(1)
    assert found.images == 600
    assert found.accuracy.value == pytest.approx((mine == labels).mean())
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert found.drop.value == pytest.approx((theirs == labels).mean() - (mine == labels).mean())
    assert found.drop.low < found.drop.value < found.drop.high
    assert found.agreement == pytest.approx((theirs == mine).mean())
    assert found.churn == pytest.approx(((theirs == labels) & (mine != labels)).mean())
    assert found.mcnemar_p == mcnemar(theirs == labels, mine == labels)


def test_tables_of_classes_and_bins_are_whole(answers):
    labels, teacher, candidate = answers
    found = quality(labels, candidate, teacher, **SETTINGS)
    confusion = np.array(found.confusion)
    assert confusion.sum(axis=1).tolist() == np.bincount(labels).tolist()
    assert found.recall == pytest.approx(confusion.diagonal() / confusion.sum(axis=1))
    assert sum(one.images for one in found.reliability) == 600
    gaps = sum(one.images * abs(one.accuracy - one.confidence) for one in found.reliability)
    assert found.ece == pytest.approx(gaps / 600)


def test_teacher_agrees_with_itself_and_has_no_drop(answers):
    labels, teacher, _ = answers
    found = quality(labels, teacher, None, **SETTINGS)
    assert (found.drop, found.mcnemar_p, found.agreement, found.churn) == (None, None, 1, 0)


def test_confusion_and_recall_are_scikit_learns():
    from sklearn import metrics  # takes seconds to import

    rng = np.random.default_rng(5)
    labels, predicted = rng.integers(0, 10, 500), rng.integers(0, 10, 500)
    confusion = confusion_matrix(labels, predicted, 10)
    assert (confusion == metrics.confusion_matrix(labels, predicted, labels=range(10))).all()
    assert recall(confusion) == pytest.approx(metrics.recall_score(labels, predicted, average=None))


def test_a_class_without_images_has_no_recall():
    assert recall(confusion_matrix(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)) == [0.5, None, 1.0]


def test_churn_counts_only_what_was_right_before():
    teacher = np.array([True, True, False, False])
    assert churn(teacher, np.array([True, False, True, False])) == 0.25
    assert churn(teacher, teacher) == 0


def test_parity_counts_the_images_that_differ_by_more_than_rounding(answers):
    here = answers[1]
    served = here[:20].copy()
    served[:3] += 0.5
    served[3:6] += 1e-6
    found = served_parity(served, here, 1e-3)
    assert (found.images, found.differing) == (20, 3)
    assert found.max_difference == pytest.approx(0.5, rel=1e-3)
