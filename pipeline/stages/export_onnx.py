"""`export_onnx`: every candidate as an ONNX file, each compared with the PyTorch model that it was made from.

Out: ``candidates.json`` and, for each candidate, ``<candidate>/model.onnx`` and ``<candidate>/model.json``; with
``mobile`` also ``<candidate>/model.pte`` for the float candidates that are made smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import MANIFEST_FILE, load_manifest
from pipeline.data.split import open_split
from pipeline.errors import ModelError
from pipeline.export import candidate as files
from pipeline.files import sha256
from pipeline.graph import FLOATS
from pipeline.models import size as sizes
from pipeline.models.checkpoint import Checkpoint
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.candidates import Candidate, Candidates, Mobile, save_candidates
from pipeline.records.measures import Parity
from pipeline.records.quantization import ORIGINAL, QAT, candidate_of, load_quantization
from pipeline.runners import trial
from pipeline.settings.export import ExportOnnx


@dataclass(frozen=True)
class _Float:
    """A float candidate before it is exported."""

    name: str
    parent: str | None
    made_by: str
    directory: Path


def export_onnx(
    config: ExportOnnx, *, data: Path, teacher: Path, student: Path, pruned: Path, quantized: Path, out: Path
) -> Metrics:
    """Write teacher, student, pruned and what `quantized` holds, such as int8 (for CPUs) and int8_tensorrt.

    Returns ``<candidate>_parity_max_difference`` and its like. Raises `ModelError` where `quantized` is not whole, a graph
    does not run, or a float one differs from PyTorch by more than `config.max_difference`, and `SettingsError` where the
    package that `config.mobile` needs is missing.
    """
    if config.mobile != "off":
        from pipeline.export import executorch

        executorch.check_installed()
    record = load_quantization(quantized)
    images = _parity_images(data, config.parity_images)
    facts = {"dataset": load_manifest(data).name, "data_sha256": sha256(data / MANIFEST_FILE)}
    directories = {"teacher": teacher, "student": student, "pruned": pruned}
    parents = dict(zip(FLOATS, [None, *FLOATS], strict=False))
    floats = [_Float(name, parents[name], stage, directories[name]) for name, stage in FLOATS.items()]
    candidates: list[Candidate] = []
    phones: list[Mobile] = []
    total = len(floats) + len(record.targets)
    checkpoint = None
    for one in floats:
        report("export_onnx", done=len(candidates), total=total)
        checkpoint = Checkpoint.load(one.directory)
        file = files.write_float(checkpoint, one.name, config.opset, facts, out)
        lineage = {"source": one.name, "parent": one.parent, "made_by": one.made_by, "target": "any"}
        candidates.append(_describe(one.name, file, checkpoint, images, lineage))
        trial.hold_to_limit(f"candidate {one.name!r}", candidates[-1].parity, config.max_difference)
        if config.mobile != "off" and one.parent is not None:
            phones.append(_export_for_phones(checkpoint, one.name, facts, images, out))
            trial.hold_to_limit(f"the mobile form of {one.name!r}", phones[-1].parity, config.max_difference)
    assert checkpoint is not None
    original, labels = checkpoint, checkpoint.spec.labels
    for target in record.targets:
        report("export_onnx", done=len(candidates), total=total)
        name = candidate_of(target)
        file = files.copy_quantized(quantized / target, name, original, facts, out)
        checkpoint = files.rounded_checkpoint(file, original, quantized / QAT)
        lineage = {"source": ORIGINAL, "parent": ORIGINAL, "made_by": "quantize", "target": target}
        lineage["gives_way_to"] = record.gives_way_to(target)
        candidates.append(_describe(name, file, checkpoint, images, lineage))
    report("export_onnx", done=total, total=total)
    save_candidates(out, Candidates(candidates=tuple(candidates), labels=labels, mobile=tuple(phones)))
    listed: list[Candidate | Mobile] = [*candidates, *phones]
    return {key: value for one in listed for key, value in _metrics(one).items()}


def _parity_images(data: Path, count: int) -> NDArray[np.uint8]:
    split = open_split(data, "validation")
    if count > len(split):
        raise ModelError(
            f"export_onnx.parity_images is {count}, but {data} has {len(split)} validation images: set at most that"
        )
    return np.ascontiguousarray(split.slice(0, count))


def _describe(
    name: str, file: Path, checkpoint: Checkpoint, images: NDArray[np.uint8], lineage: dict[str, Any]
) -> Candidate:
    """Run the candidate in `file` beside the PyTorch model in `checkpoint` and write down what it is."""
    precision = files.says(file).get("precision", "int8")
    return Candidate(
        name=name,
        file=f"{name}/{file.name}",
        **files.content(file),
        parameters=sizes.parameters(checkpoint.network),
        macs=sizes.macs(checkpoint.network, checkpoint.spec.image_shape),
        precision=precision,
        parity=trial.try_onnx(file, name, precision, checkpoint, images),
        **lineage,
    )


def _export_for_phones(
    checkpoint: Checkpoint, name: str, data: dict[str, str], images: NDArray[np.uint8], out: Path
) -> Mobile:
    """Write a float candidate as an ExecuTorch program beside its ONNX file and compare it with PyTorch."""
    from pipeline.export import executorch

    file = out / name / "model.pte"
    facts = {**files.lineage(checkpoint, data), "precision": "float32"}
    left = executorch.export(checkpoint.spec, checkpoint.network, file, facts)
    most = executorch.MAX_BATCH
    parity = trial.try_runner(
        executorch.MobileRunner(file), f"{name} for phones", checkpoint, images, (1, 7, most), most
    )
    return Mobile(
        candidate=name, format="executorch", file=f"{name}/{file.name}", **files.content(file), left_behind=left,
        parity=parity,
    )  # fmt: skip


def _metrics(one: Candidate | Mobile) -> dict[str, float]:
    name = one.name if isinstance(one, Candidate) else f"{one.candidate}_mobile"
    parity: Parity = one.parity
    metrics = {
        f"{name}_parity_max_difference": parity.max_difference,
        f"{name}_parity_mean_difference": parity.mean_difference,
        f"{name}_changed_predictions": float(parity.changed_predictions),
        f"{name}_size_bytes": float(one.size_bytes),
    }
    if isinstance(one, Candidate):
        metrics |= {f"{name}_parameters": float(one.parameters), f"{name}_macs": float(one.macs)}
    return metrics
