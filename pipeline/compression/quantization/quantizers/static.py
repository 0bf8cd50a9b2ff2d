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

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import Field

from pipeline.compression.quantization.calibration import (
    Images,
    Method,
    Range,
    check_images,
    ranges,
)
from pipeline.compression.quantization.columns import fold_columns
from pipeline.compression.quantization.proof import count_operators
from pipeline.compression.quantization.quant_plan import take_ranges
from pipeline.compression.quantization.writing import check_target, write
from pipeline.export.preprocessing import NORMALISED, network_of, normalisation_of, put_back
from pipeline.machine import cpu
from pipeline.protocols import Metrics

_OPERATORS = {"cpu": ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "GlobalAveragePool", "AveragePool", "MaxPool",
                      "Flatten", "Reshape", "Transpose", "Concat"],
              "tensorrt": ["Conv", "Gemm", "MatMul", "Add"]}  # fmt: skip
_CALCULATING = {"Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool", "Concat"}
"""Operators that are quantized on their own; the others are where their input is."""


@dataclass(frozen=True)
class Calibrated:
    """A float network and what is known of its activations: enough to quantize it in many ways."""

    source: onnx.ModelProto
    """As it was exported."""
    network: onnx.ModelProto
    """From `NORMALISED`, its constants folded."""
    ranges: Mapping[str, Range]

    def layers(self, target: str) -> list[onnx.NodeProto]:
        """The nodes that `target` can run as integers, each on its own, in the order of the graph."""
        return [node for node in self.network.graph.node if node.op_type in _CALCULATING & set(_OPERATORS[target])]


class Static:
    """ONNX Runtime's static quantization, in the form that each target runs fast.

    Args:
        calibration: how a range comes from the values seen: minmax takes all of them, percentile leaves out the
            outermost, entropy keeps the distribution closest to the float one.
        percentile: share of values inside the range, in per cent; for percentile only.
        fold: whether neighbouring columns are folded into channels (see `columns`), for cpu only: auto folds where this
            machine has VNNI, as it costs products to save copies.
        reduce_range: weights in 7 bits, for CPUs without VNNI: there no sum of two products overflows then (see
            `pipeline.compression.quantization.saturation`). It costs a bit of precision everywhere. auto does so for cpu
            where this machine's CPU is such a one.
    """

    def __init__(
        self,
        calibration: Method = "minmax",
        percentile: Annotated[float, Field(ge=90.0, le=100.0)] = 99.99,
        fold: Literal["auto", "on", "off"] = "auto",
        reduce_range: bool | Literal["auto"] = "auto",
    ) -> None:
        self.calibration = calibration
        self.percentile = percentile
        self.fold = fold
        self.reduce_range = reduce_range

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Quantize `onnx_file` to `out` for `target`, 'cpu' or 'tensorrt'.

        `calibration` holds raw images (N, C, H, W). Returns ``fused_integer_ops`` and ``float_ops_left``, counted in the
        graph that ONNX Runtime really runs; for tensorrt, ``quantized_tensors`` only. Raises `ModelError`.
        """
        check_target(target, tuple(_OPERATORS), "static")
        calibrated = self.calibrate(onnx_file, calibration)
        quantized = self.quantize(calibrated, target)
        write(quantized, calibrated.source, out, target, "int8", calibration=self.calibration)
        return census(out, target)

    def calibrate(self, onnx_file: Path, calibration: NDArray[np.uint8]) -> Calibrated:
        """Return the network in `onnx_file` with the ranges that raw images (N, C, H, W) give. Raises `ModelError`.

        Ranges that it was trained for are taken instead; see `pipeline.compression.quantization.quant_plan`.
        """
        source = onnx.load(onnx_file)
        network = network_of(source)
        check_images(calibration, source)
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "prepared.onnx"
            onnx.save(network, Path(scratch) / "float.onnx")
            quant_pre_process(Path(scratch) / "float.onnx", prepared, skip_symbolic_shape=True)
            network = onnx.load(prepared)
        images = Images(calibration, normalisation_of(source))
        found = ranges(network, images, self.calibration, self.percentile)
        return Calibrated(source, network, {**found, **take_ranges(source)})

    def quantize(self, calibrated: Calibrated, target: str, keep_float: Collection[str] = ()) -> onnx.ModelProto:
        """Return the network with Q/DQ pairs in the form of `target`, from raw pixels on; see `Calibrated.layers`.

        The nodes that `keep_float` names stay float, and so does what is between them.
        """
        source = calibrated.source
        pixels = normalisation_of(source).as_quantization() if target == "cpu" else None
        quantized = self._insert_pairs(calibrated, target, pixels, keep_float)
        if pixels is None or not _take_pixels(quantized, source):
            put_back(quantized, source)
        if target == "tensorrt":
            _keep_fused_branches_float(quantized)
        else:
            _hold_float(quantized, keep_float)
            if self.fold == "on" or (self.fold == "auto" and cpu.describe().vnni):
                fold_columns(quantized)
        _drop_dead(quantized)
        return quantized

    def _seven_bits(self, target: str) -> bool:
        if self.reduce_range == "auto":
            return target == "cpu" and cpu.describe().sums_in_16_bits
        return self.reduce_range

    def _insert_pairs(
        self, calibrated: Calibrated, target: str, pixels: dict[str, Any] | None, keep_float: Collection[str]
    ) -> onnx.ModelProto:
        """Return the network (float, from `NORMALISED`) with Q/DQ pairs."""
        symmetric = target == "tensorrt"
        with tempfile.TemporaryDirectory() as scratch:
            network, found, quantized = (Path(scratch) / name for name in ("float.onnx", "ranges.json", "int8.onnx"))
            onnx.save(calibrated.network, network)
            limits = {name: _limits(limit) for name, limit in calibrated.ranges.items()}
            save_tensors_data(TensorsData(CalibrationMethod.MinMax, limits), found)
            quantize_static(
                network,
                quantized,
                calibration_cache_path=found,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS[target],
                nodes_to_exclude=list(keep_float),
                per_channel=True,
                reduce_range=self._seven_bits(target),
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": symmetric,
                    "WeightSymmetric": True,
                    "QuantizeBias": not symmetric,
                    "OpTypesToExcludeOutputQuantization": _OPERATORS[target] if symmetric else ["Gemm", "MatMul"],
                    "TensorQuantOverrides": {NORMALISED: [pixels]} if pixels else {},
                },
            )
            model = onnx.load(quantized)
        del model.graph.value_info[:]  # the types of some are about to change
        return model


def census(file: Path, target: str) -> Metrics:
    """Count what became of the operators; for cpu in the graph that ONNX Runtime makes of `file`."""
    if target == "cpu":
        return count_operators(file)
    return {"quantized_tensors": float(sum(node.op_type == "QuantizeLinear" for node in onnx.load(file).graph.node))}


def _limits(found: Range) -> TensorData:
    return TensorData(lowest=np.float32(found[0]), highest=np.float32(found[1]))


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


def _hold_float(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Put, in place, a Max that changes nothing behind each product among the nodes `names`.

    ONNX Runtime gives a product between two quantized tensors int8 weights on its own, one scale for all channels. It does
    so only where QuantizeLinear follows, directly or behind an activation.
    """
    graph = model.graph
    lowest = numpy_helper.from_array(np.array(np.finfo(np.float32).min), "lowest")
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.name in names and node.op_type in {"Conv", "Gemm", "MatMul"}:
            output = node.output[0]
            node.output[0] = f"{output}/float"
            nodes.append(helper.make_node("Max", [node.output[0], lowest.name], [output], f"{node.name}/hold"))
    if len(nodes) > len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        graph.initializer.append(lowest)


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


COMPONENT = Static
