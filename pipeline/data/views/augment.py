"""Random views of training images, a whole batch at a time.

Offsets and rectangles are drawn on the CPU, so that a seed means the same views on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_AREA = (0.02, 0.33)
_ASPECT = (0.3, 3.3)


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image (N, C, H, W) by up to `padding` pixels each way, black coming in, and mirror half if `flip`."""
    if not padding and not flip:
        return images
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < (0.5 if flip else 0.0)
    columns = torch.arange(width).expand(count, -1)
    rows = torch.arange(height) + offsets[0]
    columns = torch.where(mirrored, width - 1 - columns, columns) + offsets[1]
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    one_each = torch.arange(count, device=images.device)[:, None, None]
    return padded[one_each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def erase(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Put noise into a random rectangle of a `share` of the normalised images (N, C, H, W).

    Zhong et al., "Random Erasing Data Augmentation" (https://arxiv.org/abs/1708.04896): area 2 to 33 % of the image,
    height to width 0.3 to 3.3, filled with random values.
    """
    if not share:
        return images
    count, _, height, width = images.shape
    area = torch.empty(count).uniform_(*_AREA, generator=generator) * height * width
    aspect = torch.empty(count).uniform_(*map(math.log, _ASPECT), generator=generator).exp()
    inside = _span(torch.sqrt(area * aspect), height, generator)[:, :, None]
    inside = inside & _span(torch.sqrt(area / aspect), width, generator)[:, None, :]
    inside &= (torch.rand(count, generator=generator) < share)[:, None, None]
    noise = torch.randn(images.shape, generator=generator)
    return torch.where(inside[:, None].to(images.device), noise.to(images.device, images.dtype), images)


def _span(length: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return (N, size) bool: for each of N a random run of about `length` positions."""
    length = length.round().clamp(1, size)
    start = (torch.rand(len(length), generator=generator) * (size - length + 1)).floor()
    position = torch.arange(size)
    return (position >= start[:, None]) & (position < (start + length)[:, None])
