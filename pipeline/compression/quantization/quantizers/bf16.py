"""bfloat16: half the bytes, the range of float32 and 8 bits of precision. For TensorRT only.

ONNX Runtime has no bfloat16 kernels for convolutions and matrix products on CPUs and refuses such a graph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, version_converter

from pipeline.compression.quantization.calibration import check_images
from pipeline.compression.quantization.half import halve
from pipeline.compression.quantization.writing import check_target, write
from pipeline.export.preprocessing import network_of
from pipeline.protocols import Metrics

_OPSET = 22
"""The first in which convolutions and poolings may be bfloat16."""


class Bf16:
    """The network in bfloat16, its input and output as they were. It has no settings."""

    targets = ("tensorrt",)

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Write `onnx_file` in bfloat16 to `out`, for target 'tensorrt' alone.

        `calibration` (raw images, (N, C, H, W)) is only checked. Returns ``half_ops``. Raises `ModelError`.
        """
        check_target(
            target, self.targets, "bf16",
            ": ONNX Runtime has no bfloat16 kernels on a CPU. Set quantize.targets to [tensorrt], "
            "or quantize.quantizer.name to fp16",
        )  # fmt: skip
        source = onnx.load(onnx_file)
        network_of(source)
        check_images(calibration, source)
        model = onnx.ModelProto.FromString(source.SerializeToString())
        if next(entry.version for entry in model.opset_import if not entry.domain) < _OPSET:
            model = version_converter.convert_version(model, _OPSET)
        operators = halve(model, TensorProto.BFLOAT16)
        write(model, source, out, target, "bfloat16", opset=str(_OPSET))
        return {"half_ops": float(operators)}


COMPONENT = Bf16
