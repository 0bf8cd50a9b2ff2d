"""Fold neighbouring columns of an image into channels, so that integer convolutions of narrow networks run fast.

ONNX Runtime's integer convolution first copies the pixels under the kernel into rows (im2col), then multiplies
matrices. With few channels each copy moves a few bytes and the copying takes nearly all the time. Seen as
(N, H, W/f, f*C), the same bytes need 1/f as many copies, and the convolution stays a convolution: its kernel holds every
filter f times, shifted, with zeros between. That is up to f times as many products, of which the multiplier has plenty.
The integers that come out are the same.

The fold may differ from one convolution to the next: channels are innermost in the layout that the integer kernels use,
so the Transposes that it takes to say so in ONNX cancel, and a Reshape moves no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

FOLDS = (1, 2, 4)
PRODUCTS_PER_COPY = 800
"""8-bit products that take as long as one copy of im2col on a CPU with VNNI (measured: 2.5 ns a copy, 3 ps a product)."""
BYTES_PER_COPY = 6
"""Bytes of weights that one copy saved is worth: folding makes kernels larger, and a proxy is to stay small."""
_SAME_SHAPE = {"QuantizeLinear", "DequantizeLinear", "Add", "Relu"}


@dataclass(frozen=True)
class Conv:
    """The sizes of a convolution without groups or dilation, for one image."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    """top, left, bottom, right"""
    in_width: int
    out_height: int
    out_width: int

    def columns(self, fold: int) -> range:
        """The groups of `fold` input columns, relative to its own, that a group of output columns looks at."""
        last = fold - self.stride[1] - self.pads[1] + self.kernel[1] - 1
        return range(math.floor(-self.pads[1] / fold), math.floor(last / fold) + 1)

    def takes(self, fold: int) -> bool:
        """Whether `fold` input columns can be one group."""
        whole = self.out_width * self.stride[1] == self.in_width and self.in_width % fold == 0
        return fold == 1 or (whole and fold % self.stride[1] == 0)

    def cost(self, fold: int) -> float:
        """Copies of im2col for one image, with products and bytes of weights at their price in copies."""
        group, taps = (1, self.kernel[1]) if fold == 1 else (fold // self.stride[1], len(self.columns(fold)))
        pixels = self.out_height * (self.out_width // group)
        weights = (fold * self.in_channels) * (group * self.out_channels) * self.kernel[0] * taps
        return pixels * self.kernel[0] * taps + pixels * weights / PRODUCTS_PER_COPY + weights / BYTES_PER_COPY


def widen(kernel: NDArray, conv: Conv, fold: int) -> NDArray:
    """Return the kernel (O, I, KH, KW) for groups of `fold` columns: (fold/stride * O, fold * I, KH, groups it looks at).

    Output r of a group is the filter moved r * stride columns to the right; what it does not look at is zero.
    """
    out_channels, in_channels, height, width = kernel.shape
    columns, group = conv.columns(fold), fold // conv.stride[1]
    wide = np.zeros((group, out_channels, fold, in_channels, height, len(columns)), kernel.dtype)
    for output in range(group):
        for tap in range(width):
            at, column = divmod(output * conv.stride[1] - conv.pads[1] + tap, fold)
            wide[output, :, column, :, :, at - columns.start] = kernel[:, :, :, tap]
    return wide.reshape(group * out_channels, fold * in_channels, height, len(columns))


def fold_columns(model: onnx.ModelProto) -> None:
    """Fold, in place, wherever it pays. `model` has Q/DQ pairs around its convolutions."""
    graph = model.graph
    shapes = dict(_image_shapes(model))
    rewrite = _Rewrite(graph, shapes)
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        fold = 1
        images = [name for name in node.input if name in shapes]
        if images and node.op_type in _SAME_SHAPE and not outputs & set(node.output):
            fold = rewrite.folds.get(images[0], 1)
            rewrite.folds[node.output[0]] = fold
        elif node.op_type == "Conv" and not outputs & set(node.output):
            conv = rewrite.describe(node)
            fold = min(filter(conv.takes, FOLDS), key=conv.cost) if conv else 1
            if conv and fold > 1:
                rewrite.widen(node, conv, fold)
                rewrite.folds[node.output[0]] = fold // conv.stride[1]
        for position, name in enumerate(node.input):
            if name in shapes:
                node.input[position] = rewrite.view(name, fold)
        rewrite.add(node)
    nodes = list(rewrite.nodes)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


class _Rewrite:
    """The graph while it is rewritten: its nodes so far, and how many columns of each tensor are one group."""

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, int, int]]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.folds: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []

    def add(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        self.producers |= dict.fromkeys(node.output, node)

    def view(self, name: str, fold: int) -> str:
        """Return the name of image tensor `name` in groups of `fold` columns, adding what it takes to see it so.

        What comes out of a DequantizeLinear is regrouped before it, as integers.
        """
        view = f"{name}/columns{fold}"
        if self.folds.get(name, 1) == fold:
            return name
        if view in self.producers:
            return view
        producer = self.producers.get(name)
        if producer is not None and producer.op_type == "DequantizeLinear":
            inputs = [self.view(producer.input[0], fold), *producer.input[1:]]
            self.add(helper.make_node("DequantizeLinear", inputs, [view], f"{view}/dequantize"))
            return view
        channels, height, width = self.shapes[name]
        shape = self._constant(f"{view}/shape", np.array([0, height, width // fold, fold * channels], np.int64))
        self.add(helper.make_node("Transpose", [name], [f"{view}/last"], f"{view}/inward", perm=[0, 2, 3, 1]))
        self.add(helper.make_node("Reshape", [f"{view}/last", shape], [f"{view}/group"], f"{view}/regroup"))
        self.add(helper.make_node("Transpose", [f"{view}/group"], [view], f"{view}/outward", perm=[0, 3, 1, 2]))
        return view

    def describe(self, node: onnx.NodeProto) -> Conv | None:
        """Return a Conv node's sizes, or None where it is of a kind that is left alone."""
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = attributes.get("group", 1) == 1 and set(attributes.get("dilations", [1])) == {1}
        padded = attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        known = node.input[0] in self.shapes and node.output[0] in self.shapes
        if not (plain and padded and known and all(self._is_constant(name) for name in node.input[1:])):
            return None
        out_channels, in_channels, height, width = self.constants[self.producers[node.input[1]].input[0]].dims
        top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
        vertical, horizontal = attributes.get("strides", [1, 1])
        _, _, in_width = self.shapes[node.input[0]]
        _, out_height, out_width = self.shapes[node.output[0]]
        return Conv(in_channels, out_channels, (height, width), (vertical, horizontal), (top, left, bottom, right),
                    in_width, out_height, out_width)  # fmt: skip

    def widen(self, node: onnx.NodeProto, conv: Conv, fold: int) -> None:
        """Give a Conv node, in place, kernel, bias and attributes for groups of `fold` columns."""
        repeats = fold // conv.stride[1]
        node.input[1] = self._parameter(node.input[1], fold, repeats, lambda kernel: widen(kernel, conv, fold))
        if len(node.input) > 2:
            node.input[2] = self._parameter(node.input[2], fold, repeats, lambda bias: np.tile(bias, repeats))
        columns, (top, _, bottom, _) = conv.columns(fold), conv.pads
        changed = {
            "kernel_shape": [conv.kernel[0], len(columns)],
            "strides": [conv.stride[0], 1],
            "pads": [top, -columns.start, bottom, columns.stop - 1],
        }
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in changed.items())

    def _is_constant(self, name: str) -> bool:
        """Whether a tensor is a dequantized initializer."""
        producer = self.producers.get(name)
        return producer is not None and producer.op_type == "DequantizeLinear" and producer.input[0] in self.constants

    def _parameter(self, name: str, fold: int, repeats: int, change: Callable[[NDArray], NDArray]) -> str:
        """Return the dequantized parameter `name` after `change`; scales and zero points of its channels are repeated."""
        producer, changed = self.producers[name], f"{name}/columns{fold}"
        values, *others = (numpy_helper.to_array(self.constants[part]) for part in producer.input)
        arrays = [change(values), *(np.tile(array, repeats) if array.ndim else array for array in others)]
        inputs = [
            self._constant(f"{part}/columns{fold}", array) for part, array in zip(producer.input, arrays, strict=True)
        ]
        dequantize = helper.make_node("DequantizeLinear", inputs, [changed], f"{changed}/dequantize")
        dequantize.attribute.extend(producer.attribute)
        self.add(dequantize)
        return changed

    def _constant(self, name: str, array: NDArray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.graph.initializer.append(self.constants[name])
        return name


def _image_shapes(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield (name, (C, H, W)) of every tensor (batch, C, H, W) of which only the batch is open."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(dims) == 4 and not dims[0] and all(dims[1:]):
            yield value.name, (dims[1], dims[2], dims[3])
