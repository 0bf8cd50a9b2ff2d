"""What a network must round so that it answers as its integer graph, read from that graph.

Tensors of the graph are found in PyTorch by their values on a few images, since the exporter renames and renumbers them,
and so are its weights. So whatever wrote the graph, and whatever it left float, training rounds at the same places.

What training learned goes back the same way: as ranges by tensor in the metadata of the float graph, which the quantizer
takes instead of measuring its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

from pipeline.compression.quantization.fake_quant import FakeQuant, Grid, Levels, trace
from pipeline.errors import ModelError
from pipeline.export.preprocessing import NORMALISED
from pipeline.models import checkpoint
from pipeline.models.spec import ModelSpec

RANGES_KEY = "trained_ranges"
"""Metadata of a float graph: JSON, tensor -> the (lowest, highest) value that it was trained to hold."""
_SAME = 1e-3
"""Largest difference of a tensor in PyTorch from the same tensor in ONNX Runtime, as a share of its largest value."""
_LOOKED_AT = 4
"""Images on which tensors are compared."""
_log = logging.getLogger(__name__)


def plan(
    spec: ModelSpec, network: nn.Module, float_file: Path, int8_file: Path, images: NDArray[np.uint8]
) -> FakeQuant:
    """Return what must be rounded in `network`, exported as `float_file`, so that it answers as `int8_file` does.

    `images` are raw (N, C, H, W). What has no counterpart in PyTorch stays float, with a warning. Raises `ModelError`
    where the graph quantizes no activations.
    """
    model = onnx.load(int8_file)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounded = _rounded_tensors(model)
    if not rounded:
        raise ModelError(
            "quantize.fit.epochs asks for training with quantization, but quantize.quantizer fixes no ranges of "
            "activations that could be trained: set quantize.fit.epochs to 0, or the quantizer to static"
        )
    nodes = _counterparts(spec, network, float_file, list(rounded), images)
    weights, lost = _weights(model, constants, float_file, network)
    lost += [tensor for tensor in rounded if tensor not in nodes]
    if lost:
        _log.warning("without a counterpart in PyTorch, and float while training: %s", ", ".join(sorted(lost)))
    sharing: dict[str, list[str]] = {}
    for tensor in nodes:
        sharing.setdefault(rounded[tensor].input[1], []).append(tensor)
    grids = []
    for scale, tensors in sharing.items():
        zero_point = constants[rounded[tensors[0]].input[2]]
        limits = np.iinfo(zero_point.dtype)
        grids.append(
            Grid(
                tensors=tuple(tensors),
                nodes=tuple(dict.fromkeys(nodes[tensor] for tensor in tensors)),
                scale=float(constants[scale]),
                zero_point=int(zero_point),
                low=int(limits.min),
                high=int(limits.max),
                learned=NORMALISED not in tensors,
            )
        )
    return FakeQuant(grids=tuple(grids), weights=weights)


def take_ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Take the ranges that a float graph was trained for out of its metadata, in place; empty where it was not."""
    for entry in model.metadata_props:
        if entry.key == RANGES_KEY:
            found = json.loads(entry.value)
            model.metadata_props.remove(entry)
            return {tensor: (low, high) for tensor, (low, high) in found.items()}
    return {}


def _rounded_tensors(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return tensor of the float graph -> the node of the integer graph that names its scale and zero point.

    Raw pixels that go into the integer graph as they are stand for the normalised image.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    found = {node.input[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        source = node.input[0]
        while source in producers and producers[source].op_type in {"Transpose", "Reshape"}:
            source = producers[source].input[0]
        if source == model.graph.input[0].name:
            found[NORMALISED] = node
    return found


def _weights(
    model: onnx.ModelProto, constants: Mapping[str, NDArray], float_file: Path, network: nn.Module
) -> tuple[dict[str, Levels], list[str]]:
    """Return how each parameter that is an int8 constant of `model` is rounded, and which int8 constants are none."""
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(float_file).graph.initializer}
    parameters = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    found: dict[str, Levels] = {}
    lost = []
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        if node.input[0] not in constants or constants[node.input[0]].dtype != np.int8:
            continue
        name = node.input[0].partition("_quantized")[0]
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        scale = constants[node.input[1]]
        axis = attributes.get("axis", 1) if scale.ndim else None
        for key, value in parameters.items():
            if name in originals and np.array_equal(value, originals[name]):
                found[key] = _levels(value, scale, axis)
                break
            if name in originals and np.array_equal(value.T, originals[name]):
                found[key] = _levels(value, scale, None if axis is None else value.ndim - 1 - axis)
                break
        else:
            lost.append(name)
    return found, lost


def _levels(weight: NDArray, scale: NDArray, axis: int | None) -> Levels:
    """Read from its scale (repeated where columns are folded) in how many steps each side of a `weight` is divided."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others)
    return Levels(count=round(float((largest / scale.reshape(-1)[: largest.size]).max())) or 127, axis=axis)


def _counterparts(
    spec: ModelSpec, network: nn.Module, float_file: Path, tensors: list[str], images: NDArray[np.uint8]
) -> dict[str, str]:
    """Return ONNX tensor -> node of the traced network that has the same value, for as many of `tensors` as have one."""
    few = images[:_LOOKED_AT]
    wanted = _onnx_values(float_file, tensors, few)
    recorder = _Recorder(trace(spec, network))
    with torch.no_grad():
        recorder.run(checkpoint.normalise(spec, torch.tensor(few)))
    found = {}
    for tensor, value in wanted.items():
        limit = _SAME * float(np.abs(value).max())
        distances = {
            name: float(np.abs(seen - value).max()) for name, seen in recorder.seen.items() if seen.shape == value.shape
        }
        nearest = min(distances, key=lambda name: distances[name], default=None)
        if nearest is not None and distances[nearest] <= limit:
            found[tensor] = nearest
    return found


def _onnx_values(file: Path, tensors: list[str], images: NDArray[np.uint8]) -> dict[str, NDArray]:
    """Return what ONNX Runtime computes for each of `tensors` on raw `images`."""
    model = onnx.load(file)
    known = {output.name for output in model.graph.output}
    made = {output for node in model.graph.node for output in node.output}
    asked = [tensor for tensor in tensors if tensor in made]
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in asked if tensor not in known)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(asked, session.run(asked, {model.graph.input[0].name: images}), strict=True))


class _Recorder(fx.Interpreter):
    """Runs a traced network and keeps what each of its operators gave."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.seen: dict[str, NDArray] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "get_attr":
            self.seen[n.name] = result.numpy()
        return result
