"""float16: half the bytes. Fast on GPUs and where a CPU has kernels for it; ONNX Runtime on x86 has none.

There ONNX Runtime puts a conversion around each operator and calculates in float32, so the file is half as large and
answers no faster than float. TensorRT runs it in float16 from the first layer to the last.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from pipeline.compression.quantization.calibration import Images, check_images, ranges
from pipeline.compression.quantization.half import halve
from pipeline.compression.quantization.writing import check_target, write
from pipeline.errors import ModelError
from pipeline.export.preprocessing import network_of, normalisation_of
from pipeline.protocols import Metrics

_log = logging.getLogger(__name__)


class Fp16:
    """The network in float16, its input and output as they were. It has no settings."""

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Write `onnx_file` in float16 to `out`; the file is the same for target 'cpu' and 'tensorrt'.

        `calibration` holds raw images (N, C, H, W), on which every activation must fit into float16. Returns
        ``half_ops`` and ``largest_activation``. Raises `ModelError`.
        """
        check_target(target, ("cpu", "tensorrt"), "fp16")
        source = onnx.load(onnx_file)
        network = network_of(source)
        check_images(calibration, source)
        seen = ranges(network, Images(calibration, normalisation_of(source)))
        name, largest = max(((name, max(map(abs, found))) for name, found in seen.items()), key=lambda found: found[1])
        if largest > float(np.finfo(np.float16).max):
            raise ModelError(
                f"activation {name!r} reaches {largest:.3g} on the calibration images, and float16 ends at 65504: "
                f"set quantize.quantizer.name to bf16, or to static"
            )
        model = onnx.ModelProto.FromString(source.SerializeToString())
        operators = halve(model, TensorProto.FLOAT16)
        if target == "cpu":
            _log.warning(
                "fp16 halves the file and brings no speed on an x86 CPU: ONNX Runtime has no float16 kernels there and "
                "calculates in float32. For speed on a CPU take the static quantizer."
            )
        write(model, source, out, target, "float16")
        return {"half_ops": float(operators), "largest_activation": largest}


COMPONENT = Fp16
