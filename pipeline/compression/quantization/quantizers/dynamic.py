"""Dynamic quantization: int8 weights, and activations whose range is found again for every batch. No calibration.

For networks of matrix products whose activations differ much from input to input. **On convolutions it is slower than
float**: ONNX Runtime has one plain integer kernel for them, whose sums go back to float before anything else is done
(benchmarks/compression.py times it). There it saves bytes and costs time; the static quantizer saves both.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.compression.quantization.calibration import check_images
from pipeline.compression.quantization.proof import count_operators
from pipeline.compression.quantization.writing import check_target, weights_of, write
from pipeline.errors import ModelError
from pipeline.export.preprocessing import network_of
from pipeline.machine import cpu
from pipeline.protocols import Metrics

_MIDDLE = 128
"""What stands for zero in a kernel."""
_log = logging.getLogger(__name__)


class Dynamic:
    """Weights of convolutions and matrix products in 8 bits, one scale an output channel. It has no settings."""

    targets = ("cpu",)

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Quantize `onnx_file` to `out`, for target 'cpu' alone.

        `calibration` (raw images, (N, C, H, W)) is only checked. Returns what the graph that ONNX Runtime runs is made
        of, and ``slow_convolutions``: those that are slower than in float. Raises `ModelError`.
        """
        check_target(
            target, self.targets, "dynamic",
            ": TensorRT takes ranges from the file. Set quantize.targets to [cpu], or quantize.quantizer.name to static",
        )  # fmt: skip
        source = onnx.load(onnx_file)
        network_of(source)
        check_images(calibration, source)
        if not weights_of(source, ("Conv", "Gemm", "MatMul")):
            raise ModelError(
                "the graph has no Conv, Gemm or MatMul with constant weights: there is nothing to quantize"
            )
        with tempfile.TemporaryDirectory() as scratch:
            prepared, quantized = Path(scratch) / "prepared.onnx", Path(scratch) / "int8.onnx"
            quant_pre_process(onnx_file, prepared, skip_symbolic_shape=True)
            quantize_dynamic(  # which makes a MatMul and an Add of each Gemm
                prepared,
                quantized,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=cpu.describe().sums_in_16_bits,  # as `static` does, for the products with int8 weights
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(quantized)
        convolutions = _quantize_convolutions(model)
        if convolutions:
            _log.warning(
                "dynamic quantization makes the %d convolutions of this graph smaller and slower than float. "
                "For speed set quantize.quantizer.name to static.", convolutions,
            )  # fmt: skip
        write(model, source, out, target, "int8", activations="dynamic")
        return {**count_operators(out), "slow_convolutions": float(convolutions)}


def _quantize_convolutions(model: onnx.ModelProto) -> int:
    """Give every convolution with a constant kernel 8-bit weights, in place; return how many there are.

    ONNX Runtime's own quantizer has one scale for a whole kernel here. Weights are symmetric, so that one scale a channel
    needs no zero point for each (which ONNX Runtime refuses), but only a multiplication of the sums. They are stored
    with 128 added: for signed ones it has only a plain loop.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    quantized: dict[str, list[str]] = {}
    nodes: list[onnx.NodeProto] = []
    convolutions = 0
    for node in graph.node:
        if node.op_type != "Conv" or not all(name in constants for name in node.input[1:]):
            nodes.append(node)
            continue
        convolutions += 1
        image = node.input[0]
        if image not in quantized:
            quantized[image] = [f"{image}/{part}" for part in ("int8", "scale", "zero")]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [image], quantized[image], f"{image}/quantize"))
        parameters = _quantize_kernel(*(numpy_helper.to_array(constants[name]) for name in node.input[1:]))
        graph.initializer.extend(
            numpy_helper.from_array(array, f"{node.output[0]}/{part}") for part, array in parameters.items()
        )
        nodes += _integer_convolution(node, quantized[image], "bias" in parameters)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return convolutions


def _quantize_kernel(kernel: NDArray, bias: NDArray | None = None) -> dict[str, NDArray]:
    """Return a kernel (O, I, ...) as integers, with scales and bias (1, O, 1, ...) for what it makes."""
    scales = np.abs(kernel).max(axis=tuple(range(1, kernel.ndim)), keepdims=True) / 127
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    shape = (1, -1, *[1] * (kernel.ndim - 2))
    found = {
        "kernel": (np.clip(np.rint(kernel / scales), -127, 127) + _MIDDLE).astype(np.uint8),
        "middle": np.array(_MIDDLE, np.uint8),
        "scales": scales.reshape(shape).astype(np.float32),
    }
    return found if bias is None else {**found, "bias": bias.reshape(shape)}


def _integer_convolution(node: onnx.NodeProto, image: list[str], bias: bool) -> list[onnx.NodeProto]:
    """Return what stands for a Conv node over `image` (integers, scale, zero point)."""
    name = node.output[0]
    integers, scale, zero = image
    integer = helper.make_node(
        "ConvInteger", [integers, f"{name}/kernel", zero, f"{name}/middle"], [f"{name}/sums"], f"{name}/convolve"
    )
    integer.attribute.extend(node.attribute)
    scaled = f"{name}/scaled" if bias else name
    return [
        integer,
        helper.make_node("Cast", [f"{name}/sums"], [f"{name}/float"], f"{name}/cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [scale, f"{name}/scales"], [f"{name}/step"], f"{name}/steps"),
        helper.make_node("Mul", [f"{name}/float", f"{name}/step"], [scaled], f"{name}/rescale"),
        *([helper.make_node("Add", [scaled, f"{name}/bias"], [name], f"{name}/shift")] if bias else []),
    ]


COMPONENT = Dynamic
