"""A float32 graph in 16 bits: its weights, and everything between the normalised image and the logits.

    image (uint8) ─ preprocessing (float32) ─ Cast ─ the network (16 bits) ─ Cast ─ logits (float32)

Nothing of it depends on images, and what a client sends and gets stays as it was.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ModelError
from pipeline.export.preprocessing import NORMALISED, belongs

_NUMPY = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
_STAY_FLOAT = {"Resize": (2,), "Upsample": (1,)}
"""Inputs, by position, that ONNX wants in float32 whatever the rest is in."""
_HALF = "/half"


def halve(model: onnx.ModelProto, dtype: TensorProto.DataType) -> int:
    """Rewrite `model` (float, with its preprocessing) in place to `dtype`, FLOAT16 or BFLOAT16.

    Returns the number of nodes that calculate in 16 bits. Raises `ModelError` where a weight is beyond the type's range.
    """
    graph = model.graph
    inner = [node for node in graph.node if not belongs(node)]
    stay = {node.input[at] for node in inner for at in _STAY_FLOAT.get(node.op_type, ()) if at < len(node.input)}
    used = {name for node in inner for name in node.input} - stay
    for tensor in graph.initializer:
        if tensor.name in used and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_converted(tensor, dtype))
    outputs = {output.name for output in graph.output if output.type.tensor_type.elem_type == TensorProto.FLOAT}
    for node in inner:
        _convert_attributes(node, dtype)
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name in outputs or name == NORMALISED:
                    names[position] = name + _HALF
    into = helper.make_node("Cast", [NORMALISED], [NORMALISED + _HALF], "half/in", to=dtype)
    back = [
        helper.make_node("Cast", [name + _HALF], [name], f"half/{name}", to=TensorProto.FLOAT)
        for name in sorted(outputs)
    ]
    before = [node for node in graph.node if belongs(node)]
    nodes = [*before, into, *inner, *back]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    return len(inner)


def _convert_attributes(node: onnx.NodeProto, dtype: TensorProto.DataType) -> None:
    """Make, in place, what a node says of float32 say `dtype`: constants, and the type that a Cast goes to."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_converted(attribute.t, dtype))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = dtype


def _converted(tensor: onnx.TensorProto, dtype: TensorProto.DataType) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halved = values.astype(_NUMPY[dtype])
    if not np.isfinite(halved.astype(np.float32)).all():
        raise ModelError(
            f"weight {tensor.name!r} reaches {np.abs(values).max():.3g}, and float16 ends at 65504: "
            f"set quantize.quantizer.name to bf16, or to static"
        )
    return numpy_helper.from_array(halved, tensor.name)
