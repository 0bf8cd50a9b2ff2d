"""Settings of the exported files: ONNX and TensorRT."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.settings.base import PositiveInt, Section


class ExportOnnx(Section):
    """ONNX files and their parity with PyTorch."""

    opset: int = Field(20, ge=18, le=23, description="ONNX operator set.")
    parity_images: PositiveInt = Field(1000, description="Validation images on which PyTorch and ONNX are compared.")
    max_difference: float = Field(
        1e-2, gt=0.0, description="Maximum difference of a float model's outputs from PyTorch's."
    )
    mobile: Literal["off", "executorch"] = Field(
        "off",
        description="executorch also writes student and pruned for phones (`pip install flyweight[mobile]`).",
    )


class BuildTensorrt(Section):
    """TensorRT engines."""

    builder: Literal["auto", "tensorrt", "tensorrt_rtx", "off"] = Field(
        "auto", description="auto takes tensorrt where it and a GPU are there, else tensorrt_rtx ahead of time."
    )
    candidates: tuple[str, ...] = Field(
        ("pruned", "int8_tensorrt"),
        description="Which candidates get an engine: teacher, student, pruned or int8_tensorrt.",
    )
