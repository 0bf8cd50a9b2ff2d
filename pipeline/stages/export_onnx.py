"""`export_onnx`: every candidate as an ONNX file, each compared with the PyTorch model that it was made from.

Out: ``candidates.json`` and, for each candidate, ``<candidate>/model.onnx`` and ``<candidate>/model.json``; with
``mobile`` also ``<candidate>/model.pte`` for the float candidates that are made smaller.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import MANIFEST_FILE, load_manifest
from pipeline.data.split import open_split
from pipeline.errors import ModelError
from pipeline.evaluation.figures import export_metrics
from pipeline.export import executorch
from pipeline.files import sha256
from pipeline.graph import FLOATS
from pipeline.models.checkpoint import Checkpoint
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.candidates import Candidate, Candidates, Mobile, save_candidates
from pipeline.records.quantization import load_quantization
from pipeline.runners.exported import Exporter
from pipeline.settings.export import ExportOnnx


def export_onnx(
    config: ExportOnnx, *, data: Path, teacher: Path, student: Path, pruned: Path, quantized: Path, out: Path
) -> Metrics:
    """Write teacher, student, pruned and what `quantized` holds, such as int8 (for CPUs) and int8_tensorrt.

    Returns ``<candidate>_parity_max_difference`` and its like. Raises `ModelError` where `quantized` is not whole, a graph
    does not run, or a float one differs from PyTorch by more than `config.max_difference`, and `SettingsError` where the
    package that `config.mobile` needs is missing.
    """
    mobile = config.mobile != "off"
    if mobile:
        executorch.check_installed()
    record = load_quantization(quantized)
    facts = {"dataset": load_manifest(data).name, "data_sha256": sha256(data / MANIFEST_FILE)}
    exporter = Exporter(config, facts, _parity_images(data, config.parity_images), out)
    left_by = {"train": teacher, "distill": student, "prune": pruned}
    candidates: list[Candidate] = []
    phones: list[Mobile] = []
    total = len(FLOATS) + len(record.targets)
    for name, stage in FLOATS.items():
        report("export_onnx", done=len(candidates), total=total)
        checkpoint = Checkpoint.load(left_by[stage])
        parent = candidates[-1].name if candidates else None
        candidates.append(exporter.float_candidate(checkpoint, name, parent, stage))
        if mobile and parent is not None:
            phones.append(exporter.mobile_form(checkpoint, name))
    for target in record.targets:  # made from the float candidate that came last
        report("export_onnx", done=len(candidates), total=total)
        candidates.append(exporter.quantized_candidate(quantized, target, checkpoint, record))
    report("export_onnx", done=total, total=total)
    listed = Candidates(candidates=tuple(candidates), labels=checkpoint.spec.labels, mobile=tuple(phones))
    save_candidates(out, listed)
    return export_metrics(listed)


def _parity_images(data: Path, count: int) -> NDArray[np.uint8]:
    split = open_split(data, "validation")
    if count > len(split):
        raise ModelError(
            f"export_onnx.parity_images is {count}, but {data} has {len(split)} validation images: set at most that"
        )
    return np.ascontiguousarray(split.slice(0, count))
