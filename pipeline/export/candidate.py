"""The files of a candidate: its ONNX graph with its lineage in the metadata, its spec beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx

from pipeline.errors import ModelError
from pipeline.export import onnx_graph
from pipeline.files import sha256
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.spec import SPEC_FILE
from pipeline.records.candidates import MODEL_FILE


def lineage(checkpoint: Checkpoint, data: Mapping[str, str]) -> dict[str, str]:
    """Return what a file says that it was made from; `data` names the data set and its hash."""
    return {"weights_sha256": checkpoint.weights_sha256, **data}


def write_float(checkpoint: Checkpoint, name: str, opset: int, data: Mapping[str, str], out: Path) -> Path:
    """Write a float candidate and its spec into ``out/name``; return the ONNX file. Raises `ModelError`."""
    file = out / name / MODEL_FILE
    file.parent.mkdir()
    facts = {**lineage(checkpoint, data), "precision": "float32"}
    onnx_graph.export(checkpoint.spec, checkpoint.network, file, opset, facts)
    shutil.copy2(checkpoint.directory / SPEC_FILE, file.parent / SPEC_FILE)
    return file


def copy_quantized(form: Path, name: str, original: Checkpoint, data: Mapping[str, str], out: Path) -> Path:
    """Copy what `quantize` wrote, its lineage added to the metadata; return the ONNX file. Raises `ModelError`."""
    model = onnx.load(form / MODEL_FILE)
    made_from = onnx_graph.metadata_of(model).get("weights_sha256")
    if made_from != original.weights_sha256:
        raise ModelError(
            f"{form / MODEL_FILE} was quantized from other weights ({made_from}) than those of {original.directory}: "
            f"give export_onnx the 'prune' run that 'quantize' took"
        )
    onnx_graph.annotate(model, lineage(original, data))
    file = out / name / MODEL_FILE
    file.parent.mkdir()
    onnx.save(model, file)
    shutil.copy2(original.directory / SPEC_FILE, file.parent / SPEC_FILE)
    return file


def rounded_checkpoint(file: Path, original: Checkpoint, trained: Path) -> Checkpoint:
    """Return the checkpoint whose weights a quantized file rounds: `original`, or `trained`, which went on from there.

    Raises `ModelError` where the file was made from neither.
    """
    wanted = says(file).get("trained_sha256")
    if wanted is None:
        return original
    checkpoint = Checkpoint.load(trained)
    if (found := checkpoint.weights_sha256) != wanted:
        raise ModelError(f"{file} was quantized from weights {wanted}, {trained} has {found}: run `quantize` again")
    return checkpoint


def says(file: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    return onnx_graph.metadata_of(onnx.load(file))


def content(file: Path) -> dict[str, str | int]:
    """Return by what a file is known: its hash and its size."""
    return {"sha256": sha256(file), "size_bytes": file.stat().st_size}
