import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.serving.client import load_image


def test_an_image_becomes_raw_pixels_of_the_models_shape(tmp_path):
    Image.new("RGB", (10, 6), (255, 0, 0)).save(tmp_path / "red.png")
    colour = load_image(tmp_path / "red.png", (3, 8, 4))
    assert (colour.shape, colour.dtype) == ((3, 8, 4), np.uint8)
    assert colour[0].min() == 255
    assert colour[1:].max() == 0
    assert load_image(tmp_path / "red.png", (1, 8, 4)).max() == 76  # ITU-R 601: 0.299 of red


def test_a_file_of_the_right_size_is_not_changed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png", (1, 5, 7))[0], pixels)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "junk.png").write_text("junk")
    with pytest.raises(DataError, match=r"junk\.png is not an image that can be read .*give a PNG or JPEG"):
        load_image(tmp_path / "junk.png", (1, 2, 2))
    with pytest.raises(DataError, match="a model of 5 channels: image files have 1"):
        load_image(tmp_path / "junk.png", (5, 2, 2))
