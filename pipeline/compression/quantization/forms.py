"""The graphs that `quantize` writes: the float one and one per target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.compression.quantization import fake_quant, quant_plan
from pipeline.export import onnx_graph
from pipeline.files import sha256
from pipeline.models.checkpoint import WEIGHTS_FILE
from pipeline.models.spec import ModelSpec
from pipeline.progress.events import report
from pipeline.protocols import Metrics, Quantizer
from pipeline.records.candidates import MODEL_FILE


@dataclass(frozen=True)
class Forms:
    """The graphs of one network in a directory: ``float`` and one per target."""

    directory: Path
    counted: Mapping[str, Metrics]
    """Target -> what its quantizer counted."""

    def file(self, form: str) -> Path:
        """Return the ONNX file of a target, or of ``float``."""
        return self.directory / form / MODEL_FILE


def write_forms(
    quantizer: Quantizer,
    targets: tuple[str, ...],
    images: NDArray[np.uint8],
    spec: ModelSpec,
    network: nn.Module,
    directory: Path,
    metadata: Mapping[str, str],
) -> Forms:
    """Write `network` as a float graph and in the form of each target into `directory`, calibrated on `images`."""
    counted: dict[str, Metrics] = {}
    forms = Forms(directory, counted)
    forms.file("float").parent.mkdir(parents=True)
    onnx_graph.export(spec, network, forms.file("float"), metadata=metadata)
    for done, target in enumerate(targets):
        report("quantize", done=done, total=len(targets))
        forms.file(target).parent.mkdir()
        counted[target] = quantizer(forms.file("float"), images, forms.file(target), target)
    report("quantize", done=len(targets), total=len(targets))
    return forms


def trained_from(trained: Path) -> dict[str, str]:
    """Return what the float graph of a checkpoint that was trained while it rounded must say of it."""
    ranges = json.loads((trained / fake_quant.RANGES_FILE).read_text(encoding="utf-8"))
    return {"trained_sha256": sha256(trained / WEIGHTS_FILE), quant_plan.RANGES_KEY: json.dumps(ranges)}
