"""Parity, counted by hand."""

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.runners.parity import compare


class Fixed:
    """Answers image i (its first pixel) with row i."""

    name = "fixed"

    def __init__(self, logits):
        self.logits = np.array(logits, np.float32)

    def __call__(self, inputs):
        return {"logits": self.logits[inputs["image"][:, 0, 0, 0]]}

    def close(self):
        pass


@pytest.fixture
def images():
    return np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)


def test_differences_and_changed_predictions_are_as_by_hand(images):
    ours = Fixed([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    theirs = Fixed([[1.0, 0.5], [2.0, 1.0], [3.0, 1.0]])
    parity = compare(ours, theirs, images, batch=2)
    assert (parity.images, parity.max_difference, parity.changed_predictions) == (3, 2.0, 1)
    assert parity.mean_difference == pytest.approx(2.5 / 6)


def test_nan_is_no_small_difference(images):
    ours = Fixed([[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0]])
    with pytest.raises(ModelError, match="fixed answers 1 of 3 images with NaN or infinity, the first of them image 2"):
        compare(ours, Fixed(np.zeros((3, 2))), images, batch=2)
