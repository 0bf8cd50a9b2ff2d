"""Post-training static quantization to int8: ranges of activations from real images, weights per channel.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(https://arxiv.org/abs/1712.05877). ONNX Runtime computes the ranges and writes the Q/DQ pairs; what is chosen here is the
form in which two very different runtimes run the result as integers:

- ``cpu``: activations uint8 with a zero point, weights int8. Every operator from the raw pixels to the logits is one of
  ONNX Runtime's integer kernels. Normalising the pixels costs nothing: the zero point of the first convolution's input
  is the mean, its scale the standard deviation.
- ``tensorrt``: both int8 and symmetric, biases float, and on additions only the skipped branch quantized, since
  TensorRT adds the other one inside the convolution that makes it.
"""

from __future__ import annotations

import collections
import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import Field

from pipeline import cpu
from pipeline.errors import ModelError
from pipeline.onnx_graph import NORMALISED, annotate, check, network_of, prepend
from pipeline.quantizers._columns import fold_columns
from pipeline.types import Metrics

BATCH = 32
"""Calibration images that are in memory as activations at the same time."""
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_OPERATORS = {"cpu": ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "GlobalAveragePool", "AveragePool", "MaxPool",
                      "Flatten", "Reshape", "Transpose", "Concat"],
              "tensorrt": ["Conv", "Gemm", "MatMul", "Add"]}  # fmt: skip
_FLOAT_OPERATORS = {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "GlobalAveragePool", "AveragePool",
                    "MaxPool", "ReduceMean", "QuantizeLinear", "Cast"}  # fmt: skip
_INTEGER_OPERATORS = {"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearMatMul", "QLinearGlobalAveragePool",
                      "QLinearAveragePool", "QLinearConcat", "QGemm", "MatMulIntegerToFloat"}  # fmt: skip


class Static:
    """ONNX Runtime's static quantization, in the form that each target runs fast.

    Args:
        calibration: how a range comes from the values seen: minmax takes all of them, percentile leaves out the
            outermost, entropy keeps the distribution closest to the float one.
        percentile: share of values inside the range, in per cent; for percentile only.
        fold: whether neighbouring columns are folded into channels (see `_columns`), for cpu only: auto folds where this
            machine has VNNI, as it costs products to save copies.
    """

    def __init__(
        self,
        calibration: Literal["minmax", "percentile", "entropy"] = "minmax",
        percentile: Annotated[float, Field(ge=90.0, le=100.0)] = 99.99,
        fold: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        self.calibration = calibration
        self.percentile = percentile
        self.fold = fold

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Quantize `onnx_file` to `out` for `target`, 'cpu' or 'tensorrt'.

        `calibration` holds raw images (N, C, H, W). Returns ``fused_integer_ops`` and ``float_ops_left``, counted in the
        graph that ONNX Runtime really runs; for tensorrt, ``quantized_tensors`` only. Raises `ModelError`.
        """
        if target not in _OPERATORS:
            raise ModelError(f"target is {target!r}: the static quantizer knows {', '.join(_OPERATORS)}")
        model = onnx.load(onnx_file)
        network = network_of(model)
        _check_images(calibration, network)
        scale, shift = pixel_scale_and_shift(model)
        pixels = _pixel_quantization(scale, shift) if target == "cpu" else None
        with tempfile.TemporaryDirectory() as scratch:
            quantized = self._quantize(network, _Batches(calibration, scale, shift), target, pixels, Path(scratch))
        if pixels is None or not _take_pixels(quantized, model):
            _put_preprocessing_back(quantized, model)
        if target == "tensorrt":
            _keep_fused_branches_float(quantized)
        elif self.fold == "on" or (self.fold == "auto" and cpu.describe().vnni):
            fold_columns(quantized)
        _drop_dead(quantized)
        del quantized.metadata_props[:]
        source = {entry.key: entry.value for entry in model.metadata_props}
        annotate(quantized, {**source, "precision": "int8", "target": target, "calibration": self.calibration})
        check(quantized, f"the {target} form of {onnx_file.name}")
        onnx.save(quantized, out)
        return _census(out, quantized, target)

    def _quantize(
        self, network: onnx.ModelProto, reader: _Batches, target: str, pixels: dict[str, Any] | None, scratch: Path
    ) -> onnx.ModelProto:
        """Return `network` (float, from `NORMALISED`) with Q/DQ pairs."""
        onnx.save(network, scratch / "float.onnx")
        quant_pre_process(scratch / "float.onnx", scratch / "prepared.onnx", skip_symbolic_shape=True)
        symmetric = target == "tensorrt"
        with contextlib.redirect_stdout(io.StringIO()):  # the histogram methods print their progress
            quantize_static(
                scratch / "prepared.onnx",
                scratch / "quantized.onnx",
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS[target],
                per_channel=True,
                reduce_range=False,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=_METHODS[self.calibration],
                extra_options={
                    "ActivationSymmetric": symmetric,
                    "WeightSymmetric": True,
                    "QuantizeBias": not symmetric,
                    "OpTypesToExcludeOutputQuantization": _OPERATORS[target] if symmetric else ["Gemm", "MatMul"],
                    "TensorQuantOverrides": {NORMALISED: [pixels]} if pixels else {},
                    "CalibStridedMinMax": 1,
                    "CalibPercentile": self.percentile,
                },
            )
        quantized = onnx.load(scratch / "quantized.onnx")
        del quantized.graph.value_info[:]  # the types of some are about to change
        return quantized


def _check_images(images: NDArray[np.uint8], network: onnx.ModelProto) -> None:
    """Raise `ModelError` unless `images` are raw pixels of the size that the network takes."""
    wanted = tuple(dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim[1:])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted or not len(images):
        raise ModelError(
            f"calibration takes raw images, uint8 of shape (N, {', '.join(map(str, wanted))}); "
            f"got {images.dtype} of shape {images.shape}"
        )


def pixel_scale_and_shift(model: onnx.ModelProto) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the preprocessing of an exported model: raw pixels p become ``p * scale + shift``, (1, C, 1, 1) each."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return constants["pixel_scale"], constants["pixel_shift"]


class _Batches(CalibrationDataReader):
    """Normalised calibration images, one batch at a time. ONNX Runtime sets the range, so that only one batch is held."""

    def __init__(self, images: NDArray[np.uint8], scale: NDArray[np.float32], shift: NDArray[np.float32]) -> None:
        self.images, self.scale, self.shift = images, scale, shift
        self.batches: Iterator[int] = iter(range(len(self)))

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.batches = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, or None after the last."""
        index = next(self.batches, None)
        if index is None:
            return None
        return {NORMALISED: self.images[index * BATCH : (index + 1) * BATCH] * self.scale + self.shift}


def _pixel_quantization(scale: NDArray[np.float32], shift: NDArray[np.float32]) -> dict[str, Any] | None:
    """Return the scale and zero point under which raw pixels are the normalised image, or None if channels differ.

    The zero point is the mean rounded to a whole pixel value: an error of half a grey level at most.
    """
    zero_points = np.round(-shift / scale)
    if len(np.unique(scale)) > 1 or len(np.unique(zero_points)) > 1 or not 0 <= zero_points.flat[0] <= 255:
        return None
    return {"scale": np.array(scale.flat[0]), "zero_point": np.array(zero_points.flat[0], np.uint8)}


def _take_pixels(quantized: onnx.ModelProto, source: onnx.ModelProto) -> bool:
    """Feed raw pixels to what took the quantized input, in place; False where something takes the input as floats."""
    takers = [node for node in quantized.graph.node if NORMALISED in node.input]
    if any(node.op_type != "QuantizeLinear" for node in takers):
        return False
    image = source.graph.input[0]
    renamed = dict.fromkeys((node.output[0] for node in takers), image.name)
    for node in takers:
        quantized.graph.node.remove(node)
    for node in quantized.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    del quantized.graph.input[:]
    quantized.graph.input.append(image)
    return True


def _put_preprocessing_back(quantized: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Put `source`'s float preprocessing before `quantized`, in place."""
    del quantized.graph.input[:]
    quantized.graph.input.append(source.graph.input[0])
    names = {"pixel_scale", "pixel_shift"}
    quantized.graph.initializer.extend(t for t in source.graph.initializer if t.name in names)
    prepend(quantized, [node for node in source.graph.node if node.name.startswith("preprocess/")])


def _keep_fused_branches_float(model: onnx.ModelProto) -> None:
    """Take the Q/DQ pair off one input of each addition, in place: the branch that a convolution makes."""
    producers = {name: node for node in model.graph.node for name in node.output}
    for addition in [node for node in model.graph.node if node.op_type == "Add"]:
        for position, name in enumerate(addition.input):
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = producers.get(dequantize.input[0])
            if quantize is None or quantize.op_type != "QuantizeLinear":
                continue
            source = producers.get(quantize.input[0])
            if source is not None and source.op_type == "Conv":
                addition.input[position] = quantize.input[0]
                break


def _drop_dead(model: onnx.ModelProto) -> None:
    """Remove, in place, nodes and initializers that nothing uses any more."""
    graph = model.graph
    wanted = {output.name for output in graph.output}
    while True:
        used = wanted | {name for node in graph.node for name in node.input}
        dead = [node for node in graph.node if not used & set(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _census(file: Path, model: onnx.ModelProto, target: str) -> Metrics:
    """Count what became of the operators; for cpu in the graph that ONNX Runtime makes of the file."""
    if target == "tensorrt":
        return {"quantized_tensors": float(sum(node.op_type == "QuantizeLinear" for node in model.graph.node))}
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimised)
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        counts = collections.Counter(node.op_type for node in onnx.load(optimised).graph.node)
    return {
        "fused_integer_ops": float(sum(counts[name] for name in _INTEGER_OPERATORS)),
        "float_ops_left": float(sum(counts[name] for name in _FLOAT_OPERATORS)),
        "layout_ops_left": float(counts["Transpose"] + counts["Reshape"] + counts["Flatten"]),
    }


COMPONENT = Static
