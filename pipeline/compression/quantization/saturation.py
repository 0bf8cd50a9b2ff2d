"""What an int8 model would answer on an x86 CPU without VNNI, worked out on any CPU.

With VNNI (or on ARM) products of 8-bit numbers are summed in 32 bits. Without it, ONNX Runtime's kernels for unsigned
activations and signed weights use VPMADDUBSW, which adds two neighbouring products ``u8 * s8 + u8 * s8`` in 16 bits and
saturates the sum to int16, -32768 to 32767 (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
255 * 127 + 255 * 127 = 64770, so two large weights side by side over bright pixels give a wrong sum, without any sign
of it.

The same integers are computed here twice, exactly and saturated to int16. Convolutions and matrix products are done in NumPy and the
rest of the graph by ONNX Runtime, operator by operator, so that what one layer gets wrong reaches the next. (Its kernels
for unsigned weights sum in 32 bits everywhere.) Neighbours are those along the dimension that is summed over: for a
convolution the channels of one pixel under the kernel, then the next pixel, which is how ONNX Runtime lays them out. A sum
is exact unless both weights are large and of one sign, so only such pairs are looked at one by one. Both results were
compared with ONNX Runtime 1.31 on six networks, the exact one on a CPU with VNNI and the other under QEMU's Haswell, which
has AVX2 alone: not one bit differed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from pipeline.errors import ModelError
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import open_session, session_options

WITH_32_BIT_SUMS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""CPU flags, as the operating system names them, under which no sum saturates."""
EVERYWHERE = "any CPU"
WITH_VNNI = "only CPUs with VNNI, AMX or ARM's dot products"
TOLERATED = 0.001
"""Share of the predictions that may change where a model is still called valid."""
BATCH = 8


class Saturation(BaseModel):
    """What becomes of a model on a CPU that sums in 16 bits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    accuracy: float
    """Share of the images that exact sums answer rightly."""
    saturated_accuracy: float
    """The same with sums saturated to int16."""
    changed: float
    """Share of the images for which another class is predicted."""
    saturating_operators: int
    """Operators in which at least one sum saturates on these images."""
    valid_on: str
    """The CPUs on which the answers are those of exact sums, in words."""
    needs: tuple[str, ...]
    """CPU flags, any of which is enough for that; none where every CPU will do."""
    sentence: str


def without_vnni(int8_file: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Saturation:
    """Compare the predictions of `int8_file` for raw images (N, C, H, W) with and without 16-bit sums.

    The result is the same on every machine. A file without products of uint8 and int8 has nothing that saturates.
    Raises `ModelError` where ONNX Runtime cannot load it or it is in the form for tensorrt.
    """
    network = Emulation(int8_file)
    exact = network(images, saturate=False).argmax(1)
    cut = network(images, saturate=True).argmax(1) if network.affected else exact
    changed = float((exact != cut).mean())
    valid, operators = changed <= TOLERATED, len(network.saturating)
    return Saturation(
        images=len(images),
        accuracy=float((exact == labels).mean()),
        saturated_accuracy=float((cut == labels).mean()),
        changed=changed,
        saturating_operators=operators,
        valid_on=EVERYWHERE if valid else WITH_VNNI,
        needs=() if valid else WITH_32_BIT_SUMS,
        sentence=_sentence(changed, operators, valid),
    )


class Emulation:
    """An int8 ONNX file that is run one operator at a time.

    Raises:
        ModelError: ONNX Runtime cannot load the file, or it is in the form for tensorrt, whose activations are signed.
    """

    def __init__(self, file: Path) -> None:
        self._model = _fused(file)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self._model.graph.initializer}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.saturating: set[str] = set()
        """Names of the operators in which a sum saturated so far."""
        self.affected = any(self._is_product(node) for node in self._model.graph.node)
        """Whether uint8 activations and int8 weights are multiplied anywhere: nothing else saturates."""
        if not self.affected and any(_is_for_tensorrt(entry) for entry in onnx.load(file).metadata_props):
            raise ModelError(
                f"{file} is in the form for tensorrt: only what a quantizer writes for target cpu is run where sums are "
                f"saturated to int16. Give the file of target cpu"
            )

    def __call__(self, images: NDArray[np.uint8], saturate: bool) -> NDArray[np.float32]:
        """Raw images (N, C, H, W) -> logits (N, classes), with sums of two products saturated to int16 or not."""
        graph = self._model.graph
        source, output = graph.input[0].name, graph.output[0].name
        return answer(lambda inputs: self._run(inputs, saturate), {source: images}, BATCH)[output]

    def _run(self, inputs: Mapping[str, NDArray], saturate: bool) -> Mapping[str, NDArray]:
        graph = self._model.graph
        values: dict[str, NDArray] = {**self._constants, **inputs}
        for node in graph.node:
            if self._is_product(node):
                sums = _Sums(saturate)
                operands = [values[name] if name else None for name in node.input]
                values[node.output[0]] = _PRODUCTS[node.op_type](sums, _attributes(node), *operands)
                if sums.saturated:
                    self.saturating.add(node.name or node.output[0])
            else:
                values |= self._by_onnxruntime(node, {name: values[name] for name in node.input if name})
        return {output.name: values[output.name] for output in graph.output}

    def _is_product(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies uint8 activations and constant int8 weights."""
        if node.op_type not in _PRODUCTS:
            return False
        weights = self._constants.get(node.input[_WEIGHTS.get(node.op_type, 3)])
        zero_point = self._constants.get(node.input[_ZERO_POINT.get(node.op_type, 2)], np.uint8(0))
        return weights is not None and weights.dtype == np.int8 and zero_point.dtype == np.uint8

    def _by_onnxruntime(self, node: onnx.NodeProto, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        outputs = [name for name in node.output if name]
        session = self._sessions.get(outputs[0])
        if session is None:
            graph = helper.make_graph([node], "one", [_value(name, array) for name, array in inputs.items()],
                                      [onnx.ValueInfoProto(name=name) for name in outputs])  # fmt: skip
            model = helper.make_model(
                graph, opset_imports=list(self._model.opset_import), ir_version=self._model.ir_version
            )
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
            )
            self._sessions[outputs[0]] = session
        return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))


class _Sums:
    """Sums of products of uint8 and int8, exact or as VPMADDUBSW makes them."""

    def __init__(self, saturate: bool) -> None:
        self._saturate = saturate
        self.saturated = False

    def product(self, left: NDArray[np.uint8], right: NDArray[np.int8]) -> NDArray[np.int64]:
        """(rows, K) uint8, (K, columns) int8 -> (rows, columns), each the sum over K."""
        exact = (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)  # float64 is exact up to 2^53
        return exact - self._lost(left, right) if self._saturate else exact

    def _lost(self, left: NDArray[np.uint8], right: NDArray[np.int8]) -> NDArray[np.int64]:
        """Return how much of each sum int16 does not hold."""
        odd = len(right) % 2
        left, right = np.pad(left, ((0, 0), (0, odd))), np.pad(right, ((0, odd), (0, 0)))
        first, second = right[0::2].astype(np.int64), right[1::2].astype(np.int64)
        highest = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
        lowest = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
        lost = np.zeros((len(left), right.shape[1]), np.int64)
        for pair, column in np.argwhere((highest > 32767) | (lowest < -32768)):
            sums = left[:, 2 * pair] * first[pair, column] + left[:, 2 * pair + 1] * second[pair, column]
            lost[:, column] += sums - sums.clip(-32768, 32767)
        self.saturated = self.saturated or bool(lost.any())
        return lost


def _convolution(
    sums: _Sums, attributes: Mapping[str, Any], image: NDArray, kernel: NDArray, zero: NDArray
) -> NDArray[np.int64]:
    """(N, C, H, W) uint8, (O, C / groups, KH, KW) int8 -> (N, O, OH, OW): the kernel over what is above `zero`."""
    groups = attributes.get("group", 1)
    per_group, (height, width) = kernel.shape[1], kernel.shape[2:]
    if groups == len(kernel) and per_group == 1:
        sums = _Sums(saturate=False)  # one channel at a time has a kernel of its own, which sums in 32 bits
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    (down, along), (down_by, along_by) = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=int(zero))
    reach = ((height - 1) * down_by + 1, (width - 1) * along_by + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))
    windows = windows[:, :, ::down, ::along, ::down_by, ::along_by]  # (N, C, OH, OW, KH, KW)
    count, _, out_height, out_width = windows.shape[:4]
    outputs = []
    for group, filters in enumerate(np.split(kernel, groups)):
        channels = windows[:, group * per_group : (group + 1) * per_group]
        rows = channels.transpose(0, 2, 3, 4, 5, 1).reshape(-1, height * width * per_group)
        columns = filters.transpose(2, 3, 1, 0).reshape(-1, len(filters))
        outputs.append(sums.product(rows, columns) - int(zero) * columns.sum(0, dtype=np.int64))
    return np.concatenate(outputs, 1).reshape(count, out_height, out_width, -1).transpose(0, 3, 1, 2)


def _matrix(sums: _Sums, left: NDArray, right: NDArray, zero: NDArray) -> NDArray[np.int64]:
    """(..., K) uint8, (K, N) int8 -> (..., N)"""
    rows = sums.product(left.reshape(-1, left.shape[-1]), right) - int(zero) * right.sum(0, dtype=np.int64)
    return rows.reshape(*left.shape[:-1], right.shape[1])


def _requantize(sums: NDArray[np.int64], scale: NDArray, zero: NDArray) -> NDArray[np.uint8]:
    """Sums of products -> uint8, rounded half to even, as ONNX Runtime does it in float32."""
    return np.clip(np.rint(sums.astype(np.float32) * scale.astype(np.float32)) + int(zero), 0, 255).astype(np.uint8)


def _qlinear_conv(
    sums: _Sums, attributes: Mapping[str, Any],
    image: NDArray, image_scale: NDArray, image_zero: NDArray, kernel: NDArray, kernel_scale: NDArray, _: NDArray,
    scale: NDArray, zero: NDArray, bias: NDArray | None = None,
) -> NDArray:  # fmt: skip
    found = _convolution(sums, attributes, image, kernel, image_zero)
    if bias is not None:
        found = found + bias.reshape(-1, 1, 1)
    return _requantize(found, (image_scale * kernel_scale / scale).reshape(-1, 1, 1), zero)


def _qgemm(
    sums: _Sums, attributes: Mapping[str, Any],
    left: NDArray, left_scale: NDArray, left_zero: NDArray, right: NDArray, right_scale: NDArray, _: NDArray,
    bias: NDArray | None = None, scale: NDArray | None = None, zero: NDArray | None = None,
) -> NDArray:  # fmt: skip
    found = _matrix(sums, left, right.T if attributes.get("transB") else right, left_zero)
    if bias is not None:
        found = found + bias
    product_scale = (left_scale * right_scale).astype(np.float32)
    if scale is None or zero is None:
        return found.astype(np.float32) * product_scale
    return _requantize(found, product_scale / scale, zero)


def _qlinear_matmul(
    sums: _Sums, _: Mapping[str, Any],
    left: NDArray, left_scale: NDArray, left_zero: NDArray, right: NDArray, right_scale: NDArray, __: NDArray,
    scale: NDArray, zero: NDArray,
) -> NDArray:  # fmt: skip
    return _requantize(_matrix(sums, left, right, left_zero), left_scale * right_scale / scale, zero)


def _matmul_integer(
    sums: _Sums, _: Mapping[str, Any], left: NDArray, right: NDArray, zero: NDArray, *__: NDArray | None
) -> NDArray:
    return _matrix(sums, left, right, zero).astype(np.int32)


def _matmul_integer_to_float(
    sums: _Sums, _: Mapping[str, Any],
    left: NDArray, right: NDArray, left_scale: NDArray, right_scale: NDArray, left_zero: NDArray, __: NDArray | None = None,
    bias: NDArray | None = None,
) -> NDArray:  # fmt: skip
    found = _matrix(sums, left, right, left_zero).astype(np.float32) * (left_scale * right_scale).astype(np.float32)
    return found if bias is None else found + bias


_PRODUCTS: dict[str, Callable[..., NDArray]] = {
    "QLinearConv": _qlinear_conv,
    "QGemm": _qgemm,
    "QLinearMatMul": _qlinear_matmul,
    "MatMulInteger": _matmul_integer,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
}
_WEIGHTS = {"MatMulInteger": 1, "MatMulIntegerToFloat": 1}
_ZERO_POINT = {"MatMulIntegerToFloat": 4}
"""Position of the activations' zero point. One that is no constant is made by DynamicQuantizeLinear: it is uint8."""


def _fused(file: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime makes of `file`, in the layout of the file."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "fused.onnx"
        options = session_options(
            optimized_model_filepath=str(out),
            graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        )
        open_session(file, options, disabled_optimizers=["DynamicQuantizeMatMulFusion"])
        return onnx.load(out)


def _is_for_tensorrt(entry: onnx.StringStringEntryProto) -> bool:
    return (entry.key, entry.value) == ("target", "tensorrt")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _value(name: str, array: NDArray) -> onnx.ValueInfoProto:
    """Describe an input of a rank, but of any size."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)


def _sentence(changed: float, operators: int, valid: bool) -> str:
    cut = f"On an x86 CPU without VNNI, sums saturate in {operators} operators"
    if valid:
        return f"{cut} and {changed:.2%} of the predictions change: the model is valid there too."
    return (
        f"{cut} and {changed:.2%} of the predictions change: serve it only where the CPU has one of "
        f"{', '.join(WITH_32_BIT_SUMS)}, or quantize with `reduce_range: true`."
    )
