"""Folded convolutions against plain ones."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.compression.quantization.columns import Conv, widen


def group(images, fold):
    """(N, C, H, W) -> (N, fold * C, H, W / fold)"""
    count, channels, height, width = images.shape
    columns = images.permute(0, 2, 3, 1).reshape(count, height, width // fold, fold * channels)
    return columns.permute(0, 3, 1, 2)


@pytest.mark.parametrize("fold", [2, 4])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (1, 1, 0), (5, 1, 2), (5, 2, 2)]
)
def test_a_folded_convolution_gives_the_same_integers(kernel, stride, pad, fold):
    generator = torch.Generator().manual_seed(kernel * 10 + stride)
    image = torch.randint(-128, 128, (2, 3, 8, 8), generator=generator).float()
    weight = torch.randint(-8, 9, (4, 3, kernel, kernel), generator=generator).float()
    expected = F.conv2d(image, weight, stride=stride, padding=pad)
    conv = Conv(3, 4, (kernel, kernel), (stride, stride), (pad,) * 4, 8, *expected.shape[2:])
    assert conv.takes(fold)
    columns = conv.columns(fold)
    padded = F.pad(group(image, fold), (-columns.start, columns.stop - 1, pad, pad))
    wide = torch.from_numpy(widen(weight.numpy(), conv, fold))
    folded = F.conv2d(padded, wide, stride=(stride, 1))
    torch.testing.assert_close(folded, group(expected, fold // stride), rtol=0, atol=0)


def test_a_width_that_does_not_divide_is_left_alone():
    odd = Conv(3, 4, (3, 3), (1, 1), (1, 1, 1, 1), in_width=7, out_height=7, out_width=7)
    assert [fold for fold in (1, 2, 4) if odd.takes(fold)] == [1]
    unpadded = Conv(3, 4, (3, 3), (1, 1), (0, 0, 0, 0), in_width=8, out_height=6, out_width=6)
    assert [fold for fold in (1, 2, 4) if unpadded.takes(fold)] == [1]


def test_narrow_layers_gain_and_wide_ones_do_not():
    narrow = Conv(8, 8, (3, 3), (1, 1), (1, 1, 1, 1), in_width=28, out_height=28, out_width=28)
    wide = Conv(64, 64, (3, 3), (1, 1), (1, 1, 1, 1), in_width=28, out_height=28, out_width=28)
    assert narrow.cost(2) < narrow.cost(1)
    assert wide.cost(1) < wide.cost(2)
    assert np.argmin([wide.cost(fold) for fold in (1, 2, 4)]) == 0
