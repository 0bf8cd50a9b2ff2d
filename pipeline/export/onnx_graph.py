"""From a PyTorch network to an ONNX file.

The exporter sees the network alone; its preprocessing is put before it (see `pipeline.export.preprocessing`). Nothing of the
machine, the run or the code's place is written into the file: the same weights give the same bytes. The hash of those
bytes leads to the run.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

import pipeline
from pipeline.errors import ModelError
from pipeline.export.preprocessing import NORMALISED, with_preprocessing
from pipeline.models.checkpoint import build
from pipeline.models.spec import ModelSpec

OPSET = 20
"""The operator set where no setting says another."""
_IR_VERSION = 10
"""Of ONNX 1.16: what ONNX Runtime has read since 1.18, and TensorRT since 10."""


def export(
    spec: ModelSpec, network: nn.Module, file: Path, opset: int = OPSET, metadata: Mapping[str, str] = {}
) -> None:
    """Write `network` with its preprocessing as one ONNX file: ``image`` uint8 (batch, C, H, W) -> ``logits`` float32.

    Batch norm is folded into the convolutions, constants are folded, the batch axis is dynamic, and the metadata holds
    the labels and the preprocessing as JSON beside what `metadata` says. Raises `ModelError` where an operator cannot
    be exported, the batch size is fixed or the result is no valid model; `file` is written last and whole.
    """
    model = _trace(spec, network.eval(), opset)
    _hold_to_spec(model, spec, opset)
    _strip(model)
    _use_pooling_operators(model)
    model = with_preprocessing(model, spec)
    annotate(model, {**describe(spec), "opset": str(opset), **metadata})
    check(model, f"{spec.architecture} as exported")
    onnx.save(model, file)


def check_exportable(spec: ModelSpec, opset: int = OPSET) -> None:
    """Raise `ModelError` where a network of `spec` cannot become an ONNX graph, as `export` would; writes nothing.

    It takes fresh weights, so that a model can be refused in seconds, before it is trained for hours.
    """
    _hold_to_spec(_trace(spec, build(spec).eval(), opset), spec, opset)


def describe(spec: ModelSpec) -> dict[str, str]:
    """Return the metadata that every graph of `spec` carries."""
    return {
        "flyweight": pipeline.__version__,
        "architecture": spec.architecture,
        "labels": json.dumps(spec.labels, ensure_ascii=False),
        "preprocessing": spec.preprocessing.model_dump_json(),
    }


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return what a graph says of itself."""
    return {entry.key: entry.value for entry in model.metadata_props}


def annotate(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Set `metadata` in place, keeping what else is there; keys are sorted, so that the order never changes the bytes."""
    known = metadata_of(model) | dict(metadata)
    del model.metadata_props[:]
    helper.set_model_props(model, dict(sorted(known.items())))


def check(model: onnx.ModelProto, what: str) -> None:
    """Raise `ModelError` unless `model` is valid ONNX with shapes that fit together."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{what} is not a valid ONNX model: {error}") from error


def _trace(spec: ModelSpec, network: nn.Module, opset: int) -> onnx.ModelProto:
    """Return the network alone as torch's exporter writes it, from `NORMALISED` to the spec's output."""
    example = torch.zeros(2, *spec.image_shape)
    network = copy.deepcopy(network)
    for parameter in network.parameters():  # channels_last would leave index arithmetic in the graph
        parameter.data = parameter.data.contiguous()
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[NORMALISED],
                output_names=[spec.outputs[0].name],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"{spec.architecture} cannot be written as ONNX (opset {opset}): {_reason(error)}. Replace that operation "
            f"in the model, or choose another export_onnx.opset."
        ) from error
    assert program is not None
    return program.model_proto


def _reason(error: BaseException) -> str:
    """Return what torch's exporter stumbled over: the operator, or the line of the model, and why."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    root = str(chain[-1]).strip()
    why = root.splitlines()[0].rstrip(". ") if root else type(chain[-1]).__name__
    if "data-dependent" in why:
        why = f"what is computed depends on the values in the image ({why})"
    if lines := re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', root):
        file, number, code = lines[-1]
        return f"{Path(file).name}, line {number}, `{code.strip()}`: {why}"
    for operator in (re.search(r"target=torch\.ops\.([\w.]+)", str(one)) for one in chain):
        if operator is not None:
            return f"operator {operator[1].removesuffix('.default')}: {why}"
    return why


def _hold_to_spec(model: onnx.ModelProto, spec: ModelSpec, opset: int) -> None:
    """Raise `ModelError` unless the traced graph is of `opset` and turns any number of images into as many answers.

    torch's exporter settles for another opset, and for a fixed batch size, without an error.
    """
    found = next(entry.version for entry in model.opset_import if entry.domain == "")
    if found != opset:
        raise ModelError(
            f"{spec.architecture} can be written in ONNX's opset {found}, but not converted to {opset}: "
            f"set export_onnx.opset to {found}"
        )
    image = _shape(model.graph.input[0])
    if image[0] != "batch":
        raise ModelError(
            f"{spec.architecture} takes batches of {image[0]} images only: somewhere in it a shape is written as a "
            f"number. Take the batch size from the input (`x.shape[0]`, or -1)."
        )
    answers = [_shape(one) for one in model.graph.output]
    wanted: list[str | int] = ["batch", *spec.outputs[0].shape]
    if answers != [wanted]:
        raise ModelError(
            f"{spec.architecture} answers {_words(image)} with {' and '.join(map(_words, answers))} instead of "
            f"{_words(wanted)}: one row per image, one logit per label"
        )


def _shape(tensor: onnx.ValueInfoProto) -> list[str | int]:
    """Each axis by its name, or by its size where it has none."""
    return [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]


def _words(shape: list[str | int]) -> str:
    return f"({', '.join(map(str, shape))})"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what torch's exporters print, log and warn of; what matters they raise."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _strip(model: onnx.ModelProto) -> None:
    """Drop, in place, what names source files and stack traces: it would differ by machine, and be a third of a small file."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:], model.functions[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    used = {node.domain for node in graph.node}
    operators = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(operators)
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "flyweight", pipeline.__version__, ""
    graph.name = "network"


def _use_pooling_operators(model: onnx.ModelProto) -> None:
    """Write, in place, a mean over the image as GlobalAveragePool and the reshape behind it as Flatten.

    They are the same, but only these have integer kernels in ONNX Runtime, and only these keep its blocked layouts.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pooled = set()
    for node in graph.node:
        if node.op_type == "ReduceMean" and len(node.input) == 2:
            axes = sorted(constants.get(node.input[1], np.array([])).tolist())
            keeps = all(a.i == 1 for a in node.attribute if a.name == "keepdims")
            if keeps and axes in ([2, 3], [-2, -1]):
                _become(node, "GlobalAveragePool")
                pooled.add(node.output[0])
        elif node.op_type == "Reshape" and node.input[0] in pooled and len(constants.get(node.input[1], ())) == 2:
            _become(node, "Flatten")
    _drop_unused(graph)


def _become(node: onnx.NodeProto, operator: str) -> None:
    node.op_type = operator
    del node.attribute[:], node.input[1:]


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
