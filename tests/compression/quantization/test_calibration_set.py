"""The calibration set: each class in its share, the same for the same seed, and what is refused."""

import hashlib

import numpy as np
import pytest

from pipeline.compression.quantization.calibration_set import calibration_images
from pipeline.data.split import open_split
from pipeline.errors import ModelError


def test_the_set_follows_from_the_seed_and_is_fingerprinted(tiny_data):
    images, record = calibration_images(tiny_data, 100, (1, 8, 8), seed=3)
    again, same = calibration_images(tiny_data, 100, (1, 8, 8), seed=3)
    np.testing.assert_array_equal(images, again)
    assert record == same and record["sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    assert calibration_images(tiny_data, 100, (1, 8, 8), seed=4)[1]["sha256"] != record["sha256"]


def test_every_class_is_calibrated_on_in_its_share(tiny_data):
    _, record = calibration_images(tiny_data, 66, (1, 8, 8), seed=1)
    shares = np.bincount(open_split(tiny_data, "train").labels) / 5
    assert sum(record["per_class"]) == 66
    assert np.abs(np.array(record["per_class"]) - shares).max() <= 1


def test_images_of_another_size_are_refused(tiny_data):
    with pytest.raises(ModelError, match=r"has images of \(1, 8, 8\), the model takes \(3, 32, 32\)"):
        calibration_images(tiny_data, 10, (3, 32, 32), seed=1)
