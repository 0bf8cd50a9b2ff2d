"""Every form of preprocessing against the formula."""

import numpy as np
import pytest
import torch

from pipeline.models.preprocessing import Normalisation
from pipeline.models.spec import Preprocessing

PIXELS = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(2, axis=1)


@pytest.fixture
def normalisation():
    return Normalisation.of(Preprocessing(mean=(0.2, 0.5), std=(0.5, 0.25)))


def test_numpy_follows_the_formula(normalisation):
    found = normalisation(PIXELS)
    expected = (PIXELS / 255 - np.reshape([0.2, 0.5], (1, 2, 1, 1))) / np.reshape([0.5, 0.25], (1, 2, 1, 1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_pytorch_gives_the_same_bits_as_numpy(normalisation):
    np.testing.assert_array_equal(normalisation.module()(torch.from_numpy(PIXELS)).numpy(), normalisation(PIXELS))


def test_raw_pixels_are_the_image_under_its_quantization():
    normalisation = Normalisation.of(Preprocessing(mean=(51 / 255,) * 2, std=(0.5, 0.5)))
    found = normalisation.as_quantization()
    assert int(found["zero_point"]) == 51
    np.testing.assert_allclose(
        (PIXELS.astype(np.float32) - 51) * found["scale"], normalisation(PIXELS), rtol=1e-5, atol=1e-6
    )


def test_the_zero_point_is_the_mean_and_the_scale_the_deviation():
    scale, shift = (np.full((1, 1, 1, 1), value, np.float32) for value in (0.02, -2))
    found = Normalisation(scale, shift).as_quantization()
    assert (float(found["scale"]), int(found["zero_point"])) == (pytest.approx(0.02), 100)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.2, 0.5), (0.5, 0.5)), ((0.2, 0.2), (0.5, 0.25)), ((-0.2, -0.2), (0.5, 0.5))]
)
def test_channels_that_differ_have_no_common_quantization(mean, std):
    assert Normalisation.of(Preprocessing(mean=mean, std=std)).as_quantization() is None
