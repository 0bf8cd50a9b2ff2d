"""A graph of 16-bit floats for a runtime that has no kernels for them: the same roundings, float32 in between.

ONNX Runtime refuses bfloat16 convolutions on a CPU, but it converts. So every operator is given its inputs as float32, and
what it answers is rounded to 16 bits again: the arithmetic of hardware that multiplies 16-bit numbers and sums in 32.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

_NARROW = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_AS_IT_IS = {"Cast", "Constant"}


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with no operator left that calculates in 16 bits; inputs, outputs and weights stay as they are."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    narrow = {name: dtype for name, dtype in types.items() if dtype in _NARROW}
    nodes: list[onnx.NodeProto] = []
    seen: set[str] = set()
    for original in model.graph.node:
        node = onnx.NodeProto.FromString(original.SerializeToString())
        nodes.append(node)
        if node.op_type in _AS_IT_IS:
            continue
        for position, name in enumerate(node.input):
            if name in narrow:
                node.input[position] = f"{name}/wide"
                if name not in seen:
                    nodes.insert(-1, helper.make_node("Cast", [name], [f"{name}/wide"], to=TensorProto.FLOAT))
                seen.add(name)
        for position, name in enumerate(node.output):
            if name in narrow:
                node.output[position] = f"{name}/exact"
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [name], to=narrow[name]))
    wide = onnx.ModelProto.FromString(model.SerializeToString())
    del wide.graph.node[:], wide.graph.value_info[:]
    wide.graph.node.extend(nodes)
    return wide
