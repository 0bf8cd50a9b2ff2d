"""The preprocessing of an ONNX graph: put before a network, taken off, read back.

    image (uint8) ─ Cast ─ Mul ─ Add ─ normalised (float32) ─ the network ─ logits

A quantizer takes the halves apart with `network_of` and joins others with `put_back`.
"""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from pipeline.errors import ModelError
from pipeline.models.preprocessing import Normalisation
from pipeline.models.spec import ModelSpec

NORMALISED = "normalised"
"""The tensor at which preprocessing ends and the network begins."""
_SCALE, _SHIFT = "pixel_scale", "pixel_shift"
_NODES = "preprocess/"


def with_preprocessing(network: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return `network` (its input is `NORMALISED`) behind Cast, Mul and Add, so that it takes raw uint8 pixels."""
    model = _copy(network)
    normalisation = Normalisation.of(spec.preprocessing)
    image = spec.inputs[0]
    set_input(model, image.name, onnx.TensorProto.UINT8, image.shape)
    constants = {_SCALE: normalisation.scale, _SHIFT: normalisation.shift}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    prepend(
        model,
        [
            helper.make_node("Cast", [image.name], ["pixels"], f"{_NODES}cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["pixels", _SCALE], ["scaled"], f"{_NODES}scale"),
            helper.make_node("Add", ["scaled", _SHIFT], [NORMALISED], f"{_NODES}shift"),
        ],
    )
    return model


def network_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the part of an exported `model` behind `NORMALISED`, as a model that takes it. Raises `ModelError`."""
    if not any(NORMALISED in node.output for node in model.graph.node):
        raise ModelError(
            f"the ONNX graph has no tensor {NORMALISED!r}, at which its preprocessing would end: "
            f"it was not written by `flyweight export_onnx`"
        )
    network = _copy(model)
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])
    set_input(network, NORMALISED, onnx.TensorProto.FLOAT, shape)
    for node in [node for node in network.graph.node if belongs(node)]:
        network.graph.node.remove(node)
    for tensor in [tensor for tensor in network.graph.initializer if tensor.name in {_SCALE, _SHIFT}]:
        network.graph.initializer.remove(tensor)
    return network


def normalisation_of(model: onnx.ModelProto) -> Normalisation:
    """Return what the preprocessing of an exported `model` does to pixels."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in {_SCALE, _SHIFT}}
    return Normalisation(*(numpy_helper.to_array(constants[name]) for name in (_SCALE, _SHIFT)))


def put_back(network: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Put the preprocessing of the exported model `source` before `network`, in place."""
    del network.graph.input[:]
    network.graph.input.append(source.graph.input[0])
    network.graph.initializer.extend(one for one in source.graph.initializer if one.name in {_SCALE, _SHIFT})
    prepend(network, [node for node in source.graph.node if belongs(node)])


def belongs(node: onnx.NodeProto) -> bool:
    """Whether `node` is one of those before `NORMALISED`."""
    return node.name.startswith(_NODES)


def set_input(model: onnx.ModelProto, name: str, dtype: int, shape: tuple[int, ...]) -> None:
    """Make ``name`` (batch, *shape) the only input, in place; the batch axis is dynamic."""
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info(name, dtype, ["batch", *shape]))


def prepend(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Put `nodes` before all others, in place."""
    nodes = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())
