"""Components that only tests name, as ``training_toys:Plain``."""

import torch
from torch import nn


class Plain(nn.Module):
    """No batch norm and no dropout: answers alike in training and in evaluation."""

    def __init__(self, in_channels: int, classes: int, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 4)
        return self.head(torch.flatten(x, 1))


class Broken(Plain):
    """Divides by nothing."""

    def forward(self, x):
        return super().forward(x) / 0.0


class Eigen(nn.Module):
    """Something that ONNX has no operator for."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()

    def forward(self, x):
        return torch.linalg.eigh(x[:, 0]).eigenvalues
