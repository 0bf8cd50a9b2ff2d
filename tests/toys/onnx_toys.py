"""Tiny ONNX files of all shapes and types, for what is served without having been trained here."""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper


def write(
    path: Path,
    nodes: list[NodeProto],
    inputs: list[tuple[str, int, list]],
    outputs: list[tuple[str, int, list]],
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a graph whose tensors are given as (name, type, shape), text in a shape being an open axis."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def add_sub(path: Path, batch: str | int = "batch") -> Path:
    """The `simple` model of NVIDIA's client examples: two inputs of 16 integers, their sum and their difference."""
    shape = [batch, 16]
    return write(
        path,
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        [("INPUT0", TensorProto.INT32, shape), ("INPUT1", TensorProto.INT32, shape)],
        [("OUTPUT0", TensorProto.INT32, shape), ("OUTPUT1", TensorProto.INT32, shape)],
    )


def every_type(path: Path) -> Path:
    """Each input comes back as it went, in all types that can be served, batched, one of them without further axes."""
    types = {
        "bool": TensorProto.BOOL,
        "uint8": TensorProto.UINT8,
        "uint16": TensorProto.UINT16,
        "uint32": TensorProto.UINT32,
        "uint64": TensorProto.UINT64,
        "int8": TensorProto.INT8,
        "int16": TensorProto.INT16,
        "int32": TensorProto.INT32,
        "int64": TensorProto.INT64,
        "float16": TensorProto.FLOAT16,
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
    }
    shapes = {name: ["n", 2, 3] for name in types} | {"int64": ["n"], "float32": ["n", "length"]}
    return write(
        path,
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in types],
        [(name, kind, shapes[name]) for name, kind in types.items()],
        [(f"{name}_out", kind, shapes[name]) for name, kind in types.items()],
    )


def without_batch(path: Path) -> Path:
    """(rows, 3) and a number -> the rows' sum times the number (3,), and how many numbers there were, without an axis."""
    return write(
        path,
        [
            helper.make_node("ReduceSum", ["table", "axis"], ["total"], keepdims=0),
            helper.make_node("Mul", ["total", "factor"], ["scaled"]),
            helper.make_node("Size", ["table"], ["size"]),
        ],
        [("table", TensorProto.FLOAT, ["rows", 3]), ("factor", TensorProto.FLOAT, [])],
        [("scaled", TensorProto.FLOAT, [3]), ("size", TensorProto.INT64, [])],
        {"axis": np.array([0], np.int64)},
    )


def mixing(path: Path) -> Path:
    """(rows, 3) -> (rows, 3), a softmax over the rows: each answer depends on its neighbours."""
    return write(
        path,
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [("x", TensorProto.FLOAT, ["rows", 3])],
        [("y", TensorProto.FLOAT, ["rows", 3])],
    )


def table(path: Path, rows: int = 4) -> Path:
    """Looks numbers up in a table of `rows`: an index beyond it is an error of that request alone."""
    return write(
        path,
        [helper.make_node("Gather", ["table", "index"], ["found"], axis=0)],
        [("index", TensorProto.INT64, ["n", 2])],
        [("found", TensorProto.FLOAT, ["n", 2])],
        {"table": np.arange(rows, dtype=np.float32) * 10},
    )


def text(path: Path) -> Path:
    """Takes strings."""
    return write(
        path,
        [helper.make_node("Identity", ["words"], ["same"])],
        [("words", TensorProto.STRING, ["n"])],
        [("same", TensorProto.STRING, ["n"])],
    )


def heavy(path: Path, shape: tuple[int, ...], width: int = 512, depth: int = 12) -> Path:
    """(N, *shape) uint8 -> (N, 1): some milliseconds of matrix products a row."""
    generator = np.random.default_rng(0)
    size = int(np.prod(shape))
    weights = {"first": generator.standard_normal((size, width * 32)).astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["wide"]),
        helper.make_node("Reshape", ["wide", "rows"], ["x0"]),
    ]
    weights["rows"] = np.array([-1, 32, width], np.int64)
    weights["inner"] = generator.standard_normal((width, width)).astype(np.float32) / width
    for step in range(depth):
        nodes.append(helper.make_node("MatMul", [f"x{step}", "inner"], [f"x{step + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"x{depth}", "axes"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Unsqueeze", ["mean", "last"], ["score"]))
    weights["axes"], weights["last"] = np.array([1, 2], np.int64), np.array([1], np.int64)
    return write(
        path,
        nodes,
        [("image", TensorProto.UINT8, ["N", *shape])],
        [("score", TensorProto.FLOAT, ["N", 1])],
        weights,
    )
