"""Random views of training images, a whole batch at a time.

What is drawn for an image depends on seed, epoch and row alone: neither on the number of processes nor on the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.views.row_generator import RowGenerator

_AREA = (0.02, 0.33)
_ASPECT = (0.3, 3.3)
_DOWN, _RIGHT, _MIRROR, _WHETHER, _SIZE, _SHAPE, _TOP, _LEFT, _NOISE = range(9)
"""Which number of a row's stream decides what; the noise takes all from its own on."""


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: RowGenerator) -> Tensor:
    """Shift each image (N, C, H, W) by up to `padding` pixels each way, black coming in, and mirror half if `flip`."""
    if not padding and not flip:
        return images
    count, _, height, width = images.shape
    down, right = (_whole(generator.uniform(place), 2 * padding + 1)[:, None] for place in (_DOWN, _RIGHT))
    mirrored = generator.uniform(_MIRROR)[:, None] < (0.5 if flip else 0.0)
    columns = torch.arange(width).expand(count, -1)
    rows = torch.arange(height) + down
    columns = torch.where(mirrored, width - 1 - columns, columns) + right
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    one_each = torch.arange(count, device=images.device)[:, None, None]
    return padded[one_each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def erase(images: Tensor, share: float, generator: RowGenerator) -> Tensor:
    """Put noise into a random rectangle of a `share` of the normalised images (N, C, H, W).

    Zhong et al., "Random Erasing Data Augmentation" (https://arxiv.org/abs/1708.04896): area 2 to 33 % of the image,
    height to width 0.3 to 3.3, filled with random values.
    """
    if not share:
        return images
    chosen = (generator.uniform(_WHETHER) < share).nonzero()[:, 0]
    height, width = images.shape[2:]
    area = _between(_AREA, generator.uniform(_SIZE)) * height * width
    aspect = _between((math.log(_ASPECT[0]), math.log(_ASPECT[1])), generator.uniform(_SHAPE)).exp()
    rows = _span(torch.sqrt(area * aspect), height, generator.uniform(_TOP))[chosen]
    columns = _span(torch.sqrt(area / aspect), width, generator.uniform(_LEFT))[chosen]
    inside = (rows[:, :, None] & columns[:, None, :])[:, None].to(images.device)
    noise = generator.normal(_NOISE, images[0].numel(), chosen).view(-1, *images.shape[1:])
    chosen = chosen.to(images.device)
    erased = images.clone()
    erased[chosen] = torch.where(inside, noise.to(images.device, images.dtype), images[chosen])
    return erased


def _whole(uniform: Tensor, count: int) -> Tensor:
    """Turn numbers in [0, 1) into whole ones from 0 to `count` - 1."""
    return (uniform * count).floor().long()


def _between(limits: tuple[float, float], uniform: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * uniform


def _span(length: Tensor, size: int, uniform: Tensor) -> Tensor:
    """Return (N, size) bool: for each of N a run of about `length` positions, which begins where `uniform` says."""
    length = length.round().clamp(1, size)
    start = (uniform * (size - length + 1)).floor()
    position = torch.arange(size)
    return (position >= start[:, None]) & (position < (start + length)[:, None])
