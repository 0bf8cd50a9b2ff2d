"""What an ONNX graph says of its inputs and outputs, of any number, name, rank and numeric type, as a `ModelSpec`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, ValueInfoProto

from pipeline.errors import PromotionError
from pipeline.models.spec import DTYPES, ModelSpec, Preprocessing, TensorSpec

ARCHITECTURE = "onnx"
"""What the spec of a file of unknown origin names as its architecture: nothing that could be rebuilt."""
_DTYPES: Mapping[int, str] = {
    getattr(TensorProto, {"float16": "FLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}.get(name, name.upper())): name
    for name in DTYPES
}


def read_spec(file: Path) -> ModelSpec:
    """Return what the graph in `file` says of its inputs and outputs. Raises `PromotionError`.

    It counts as batched where the first axis of all of them is open.
    """
    graph = _load(file).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs or not graph.output:
        raise PromotionError(f"{file} has {len(inputs)} inputs and {len(graph.output)} outputs: a model needs both")
    taken, given = _tensors(file, "input", inputs), _tensors(file, "output", graph.output)
    batched = all(tensor.shape and tensor.shape[0] == -1 for tensor in (*taken, *given))
    return ModelSpec(
        architecture=ARCHITECTURE,
        inputs=_rows(taken) if batched else taken,
        outputs=_rows(given) if batched else given,
        batched=batched,
        preprocessing=Preprocessing(mean=(), std=()),
        labels=(),
    )


def _load(file: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise PromotionError(f"{file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise PromotionError(f"{file} is not an ONNX model: {error}") from error
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise PromotionError(
            f"{file} keeps {len(outside)} weights in other files, such as {outside[0]!r}, and one file is what is hashed and "
            f"served: write it again with onnx.save(onnx.load(file), file, save_as_external_data=False)"
        )
    return onnx.shape_inference.infer_shapes(model)


def _tensors(file: Path, kind: str, values: Iterable[ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(_tensor(file, kind, value) for value in values)


def _rows(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The same without their first axis."""
    return tuple(tensor.model_copy(update={"shape": tensor.shape[1:]}) for tensor in tensors)


def _tensor(file: Path, kind: str, value: ValueInfoProto) -> TensorSpec:
    """Return one input or output with its whole shape, open axes as -1. Raises `PromotionError` where none can serve it."""
    where = f"{file}: {kind} {value.name!r}"
    form = value.type.WhichOneof("value")
    if form != "tensor_type":
        raise PromotionError(
            f"{where} is a {str(form).removesuffix('_type')}, and only tensors can be served: export the model without it "
            f"(scikit-learn's converter: options={{'zipmap': False}})"
        )
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DTYPES:
        name = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise PromotionError(
            f"{where} holds {name}, which model.py cannot pass on; it can: {', '.join(DTYPES)}. "
            f"{'Turn text into numbers before the model' if name == 'string' else 'Put a Cast to one of them into the graph'}"
        )
    if not tensor.HasField("shape"):
        raise PromotionError(f"{where} has no shape, not even a number of axes: state it in the graph")
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
    return TensorSpec.model_validate({"name": value.name, "dtype": _DTYPES[tensor.elem_type], "shape": shape})
