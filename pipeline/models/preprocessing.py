"""Normalising raw pixels, in the forms in which it is needed: NumPy, PyTorch, int8 input.

The one place that knows what ``Preprocessing`` in a model's spec means. The ONNX form is in `pipeline.export.preprocessing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.spec import Preprocessing


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Raw pixels p become ``p * scale + shift``, channel by channel; (1, C, 1, 1) float32 each."""

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> Normalisation:
        """Return ``(p / 255 - mean) / std`` as one product and one sum, rounded to float32 once."""
        mean, std = (np.asarray(values, np.float64) for values in (preprocessing.mean, preprocessing.std))
        shape = (1, -1, 1, 1)
        return cls((1 / (255 * std)).reshape(shape).astype(np.float32), (-mean / std).reshape(shape).astype(np.float32))

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, C, H, W) uint8 -> the float images that the network takes."""
        return pixels * self.scale + self.shift

    def module(self) -> Normalise:
        """Return the same as a module of PyTorch."""
        return Normalise(self)

    def as_quantization(self) -> dict[str, Any] | None:
        """Return the scale and zero point under which raw pixels are the normalised image, or None if channels differ.

        The zero point is the mean rounded to a whole pixel value: an error of half a grey level at most.
        """
        zero_points = np.round(-self.shift / self.scale)
        if len(np.unique(self.scale)) > 1 or len(np.unique(zero_points)) > 1 or not 0 <= zero_points.flat[0] <= 255:
            return None
        return {"scale": np.array(self.scale.flat[0]), "zero_point": np.array(zero_points.flat[0], np.uint8)}


class Normalise(nn.Module):
    """`Normalisation` in PyTorch: (N, C, H, W) uint8 -> float32, on the device of its buffers."""

    scale: Tensor
    shift: Tensor

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(normalisation.scale))
        self.register_buffer("shift", torch.from_numpy(normalisation.shift))

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> the float images that the network takes."""
        return image.float() * self.scale + self.shift
