"""The graphs that `quantize` writes: the float one and one per target, and what is found out about the one for CPUs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from pipeline.compression.quantization import fake_quant, quant_plan
from pipeline.compression.quantization.proof import Proof
from pipeline.compression.quantization.saturation import Saturation, without_vnni
from pipeline.data.split import open_split
from pipeline.export import onnx_graph
from pipeline.files import sha256
from pipeline.models.checkpoint import WEIGHTS_FILE
from pipeline.models.spec import ModelSpec
from pipeline.progress.events import report
from pipeline.protocols import Metrics, Quantizer
from pipeline.records.quantization import ORIGINAL, candidate_of

SATURATION_IMAGES = 256
"""Validation images, at most, that are answered with and without 16-bit sums: 2 to 8 seconds for networks of 1 to 10 MMACs."""
_log = logging.getLogger(__name__)


def write_forms(
    spec: ModelSpec,
    network: nn.Module,
    quantizer: Quantizer,
    targets: tuple[str, ...],
    images: NDArray[np.uint8],
    directory: Path,
    metadata: Mapping[str, str],
) -> dict[str, Metrics]:
    """Write `network` as ``float/model.onnx`` and in the form of each target into `directory`; return what was counted."""
    float_file = directory / "float" / "model.onnx"
    float_file.parent.mkdir(parents=True)
    onnx_graph.export(spec, network, float_file, metadata=metadata)
    counted: dict[str, Metrics] = {}
    for done, target in enumerate(targets):
        report("quantize", done=done, total=len(targets))
        (directory / target).mkdir()
        counted[target] = quantizer(float_file, images, directory / target / "model.onnx", target)
    report("quantize", done=len(targets), total=len(targets))
    return counted


def trained_from(trained: Path) -> dict[str, str]:
    """Return what the float graph of a checkpoint that was trained while it rounded must say of it."""
    ranges = json.loads((trained / fake_quant.RANGES_FILE).read_text(encoding="utf-8"))
    return {"trained_sha256": sha256(trained / WEIGHTS_FILE), quant_plan.RANGES_KEY: json.dumps(ranges)}


def validity(int8_file: Path, data: Path) -> Saturation:
    """Find out where `int8_file` answers as it should, on validation images, and write that into its metadata."""
    validation = open_split(data, "validation")
    count = min(SATURATION_IMAGES, len(validation))
    valid = without_vnni(int8_file, validation.slice(0, count), validation.labels[:count])
    model = onnx.load(int8_file)
    onnx_graph.annotate(model, {"valid_on": valid.valid_on, "needs_cpu_flags": json.dumps(valid.needs)})
    onnx.save(model, int8_file)
    return valid


def outcome(proof: Proof, valid: Saturation) -> dict[str, Any]:
    """Return what was found out of the cpu form, the conclusions first; say what speaks against it."""
    if not proof.faster:
        _log.warning("%s", proof.sentence)
    if valid.needs:
        _log.warning("%s", valid.sentence)
    return {
        "serve": candidate_of("cpu") if proof.faster else ORIGINAL,
        "valid_on": valid.valid_on,
        "proof": proof.model_dump(mode="json"),
        "without_vnni": valid.model_dump(mode="json", exclude={"valid_on"}),
    }
