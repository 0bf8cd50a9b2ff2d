"""4-bit weights for networks that are mostly matrix products; what is calculated stays float.

Each column of a weight matrix is cut into blocks along the dimension that is summed over, and each block is rounded to 16
steps with a scale of its own, as in "round to nearest" of Dettmers and Zettlemoyer, "The case for 4-bit precision"
(https://arxiv.org/abs/2212.09720). A matrix becomes about 7 times smaller. That is faster where reading weights is what
takes the time: large matrices and small batches. Convolutions stay as they are, so a convolutional proxy gains nothing.

For ``cpu`` the products are ONNX Runtime's MatMulNBits, for ``tensorrt`` a DequantizeLinear of INT4 stands before each.
The rounding is done here, as ONNX Runtime's own tool takes MatMul only, and sets up the logging of the whole process when
it is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter
from torch import nn

from pipeline.compression.quantization.calibration import check_images
from pipeline.compression.quantization.writing import check_target, weights_of, write
from pipeline.errors import ModelError
from pipeline.export.preprocessing import network_of
from pipeline.protocols import Metrics

WORTH = 0.5
"""Least share of a graph's weights that must be in matrix products."""
_OPSET = 21
"""The first that has INT4 and scales by block."""


class Int4:
    """Weights of MatMul and Gemm in 4 bits.

    Args:
        block_size: weights that share a scale: fewer keep more accuracy and take more bytes.
    """

    def __init__(self, block_size: Literal[16, 32, 64, 128] = 32) -> None:
        self.block_size = block_size

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Write `onnx_file` with 4-bit weights to `out`, for target 'cpu' or 'tensorrt'.

        `calibration` (raw images, (N, C, H, W)) is only checked. Returns ``int4_layers`` and ``int4_weights_share``, the
        share of all weights that are 4-bit now. Raises `ModelError` where matrix products hold too few weights.
        """
        check_target(target, ("cpu", "tensorrt"), "int4")
        source = onnx.load(onnx_file)
        network_of(source)
        check_images(calibration, source)
        share = _share_of_matrices(source)
        _refuse_below_worth(share)
        model = onnx.ModelProto.FromString(source.SerializeToString())
        if target == "tensorrt":
            model = version_converter.convert_version(model, _OPSET)
            layers = self._dequantize_first(model)
        else:
            layers = self._pack(model)
        write(model, source, out, target, "int4", block_size=str(self.block_size))
        return {"int4_layers": float(layers), "int4_weights_share": share}

    def check_network(self, network: nn.Module) -> None:
        """Raise `ModelError` where linear layers hold too few of the weights, so that it is known before a training."""
        linear = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear))
        _refuse_below_worth(linear / sum(weight.numel() for weight in network.parameters()))

    def _pack(self, model: onnx.ModelProto) -> int:
        """Make, in place, a MatMulNBits of each product with constant weights; return their number."""
        matrices = _matrices(model)
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if node.name not in matrices:
                nodes.append(node)
                continue
            matrix, _ = matrices[node.name]
            integers, scales = quantize_blocks(matrix, self.block_size)
            weights, steps = f"{node.output[0]}/int4", f"{node.output[0]}/scales"
            model.graph.initializer.extend(
                [numpy_helper.from_array(pack(integers), weights), numpy_helper.from_array(scales.T.copy(), steps)]
            )
            product = f"{node.output[0]}/product" if len(node.input) > 2 else node.output[0]
            nodes.append(
                helper.make_node(
                    "MatMulNBits",
                    [node.input[0], weights, steps],
                    [product],
                    f"{node.name}/int4",
                    domain="com.microsoft",
                    K=len(matrix),
                    N=matrix.shape[1],
                    bits=4,
                    block_size=self.block_size,
                )
            )
            if len(node.input) > 2:
                nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}/bias"))
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        _replace_nodes(model, nodes)
        return len(matrices)

    def _dequantize_first(self, model: onnx.ModelProto) -> int:
        """Put, in place, INT4 weights and a DequantizeLinear before each product; return their number."""
        matrices = _matrices(model)
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if node.name in matrices:
                matrix, transposed = matrices[node.name]
                integers, scales = quantize_blocks(matrix, self.block_size)
                flat = integers.reshape(-1, integers.shape[2])[: len(matrix)]
                arrays = {"int4": flat.astype(ml_dtypes.int4), "scales": scales}
                names = [f"{node.output[0]}/{part}" for part in arrays]
                model.graph.initializer.extend(
                    numpy_helper.from_array(array.T.copy() if transposed else array, name)
                    for name, array in zip(names, arrays.values(), strict=True)
                )
                node.input[1] = f"{node.output[0]}/weights"
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear",
                        names,
                        [node.input[1]],
                        f"{node.name}/dequantize",
                        axis=1 if transposed else 0,
                        block_size=self.block_size,
                    )
                )
            nodes.append(node)
        _replace_nodes(model, nodes)
        return len(matrices)


def quantize_blocks(matrix: NDArray[np.float32], block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round (K, N) weights to integers from -8 to 7, (blocks, block, N), and a scale for each block, (blocks, N).

    The weight of the largest magnitude in a block becomes exactly -8 times its scale. K is filled up with zeros.
    """
    rows, columns = matrix.shape
    blocks = -(-rows // block)
    padded = np.zeros((blocks * block, columns), np.float32)
    padded[:rows] = matrix
    grouped = padded.reshape(blocks, block, columns)
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(1, keepdims=True), 1)
    scales = np.where(largest == 0, 1.0, largest / -8).astype(np.float32)
    return np.clip(np.rint(grouped / scales), -8, 7).astype(np.int8), scales[:, 0]


def pack(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(blocks, block, N) integers from -8 to 7 -> (N, blocks, block / 2) bytes, as MatMulNBits reads them.

    Each byte holds two neighbours of a block, the first in its low half, with 8 added.
    """
    halves = (integers + 8).astype(np.uint8).transpose(2, 0, 1)
    return halves[..., 0::2] | halves[..., 1::2] << np.uint8(4)


def _matrices(model: onnx.ModelProto) -> dict[str, tuple[NDArray[np.float32], bool]]:
    """Return node name -> (its weights as (K, N), whether the graph has them transposed) of all products to pack."""
    attributes: dict[str, dict[str, Any]] = {
        node.name: {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        for node in model.graph.node
    }
    found = {}
    for name, tensor in weights_of(model, ("MatMul", "Gemm")).items():
        options = attributes[name]
        plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
        if plain and len(tensor.dims) == 2:
            weights, transposed = numpy_helper.to_array(tensor), bool(options.get("transB", 0))
            found[name] = (weights.T if transposed else weights, transposed)
    return found


def _refuse_below_worth(share: float) -> None:
    if share < WORTH:
        raise ModelError(
            f"int4 packs the weights of matrix products (MatMul, Gemm), and they hold {share:.0%} of this network's "
            f"weights; the rest, as of convolutions, would stay float. Set quantize.quantizer.name to static"
        )


def _share_of_matrices(model: onnx.ModelProto) -> float:
    """Return which share of the graph's weights the products to pack hold."""
    everything = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    return sum(matrix.size for matrix, _ in _matrices(model).values()) / everything


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Make `nodes` the graph's, in place, and drop the constants that no node takes any more."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(copies)
    used = {name for node in copies for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


COMPONENT = Int4
