"""How every quantizer leaves its file: with the metadata of its source, checked, and whole or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx

from pipeline.errors import ModelError
from pipeline.export.onnx_graph import annotate, check
from pipeline.runners.onnx_runner import OnnxRunner


def write(
    model: onnx.ModelProto, source: onnx.ModelProto, out: Path, target: str, precision: str, **facts: str
) -> None:
    """Write `model`, made from `source`, to `out`; its metadata are the source's, `target`, `precision` and `facts`.

    Raises `ModelError`, and leaves nothing at `out`, where the model is not valid or, for cpu, ONNX Runtime refuses it.
    """
    del model.metadata_props[:]
    kept = {entry.key: entry.value for entry in source.metadata_props}
    annotate(model, {**kept, **facts, "precision": precision, "target": target})
    check(model, f"the {precision} form for {target}")
    part = out.with_name(f"{out.stem}.part.onnx")
    try:
        onnx.save(model, part)
        if target == "cpu":
            OnnxRunner(part).close()
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def check_target(target: str, allowed: tuple[str, ...], quantizer: str, otherwise: str = "") -> None:
    """Raise `ModelError` unless `target` is one of `allowed`; `otherwise` says what to do about it."""
    if target not in allowed:
        raise ModelError(f"target is {target!r}: the {quantizer} quantizer knows {', '.join(allowed)}{otherwise}")


def weights_of(model: onnx.ModelProto, operators: tuple[str, ...]) -> dict[str, onnx.TensorProto]:
    """Return node name -> its second input, of the nodes of `operators` for which that is a constant matrix or kernel."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.name: constants[node.input[1]]
        for node in model.graph.node
        if node.op_type in operators and node.input[1] in constants
    }
