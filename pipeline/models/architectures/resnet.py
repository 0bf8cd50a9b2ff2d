"""Compact residual networks for small images.

The CIFAR design of He et al., "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385),
section 4.2: a 3x3 stem, then groups of basic blocks, each group twice as wide and half as large as the one before.
Every convolution is followed by its own batch norm so that the two fuse, and additions are written as `torch.add` of
two named branches so that dependency tracing can prune through them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, in, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) float -> (N, out, H/stride, W/stride) float."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(torch.add(self.bn2(self.conv2(y)), self.shortcut(x)))


class ResNet(nn.Module):
    """A residual network with `len(blocks)` groups; group i has ``blocks[i]`` blocks of ``width * 2**i`` channels.

    Args:
        in_channels: channels of the image.
        classes: number of logits.
        width: channels of the first group.
        blocks: basic blocks of each group.
        stem_stride: 2 halves the image at once: a quarter of the work, for a student that must be quick.
    """

    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1)],
        classes: Annotated[int, Field(ge=2)],
        width: Annotated[int, Field(ge=1, le=2048)] = 16,
        blocks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=5)] = [3, 3, 3],  # noqa: B006
        stem_stride: Literal[1, 2] = 1,
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        groups: list[nn.Module] = []
        channels = width
        for index, depth in enumerate(blocks):
            wide = width * 2**index
            for block in range(depth):
                groups.append(BasicBlock(channels, wide, stride=2 if index > 0 and block == 0 else 1))
                channels = wide
        self.blocks = nn.Sequential(*groups)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) normalised float -> (N, classes) logits."""
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


COMPONENT = ResNet
