"""Candidates as they are exported: each is written, run beside the PyTorch model that it was made from, and described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.export import executorch
from pipeline.export.candidate import content, copy_quantized, lineage, rounded_checkpoint, says, write_float
from pipeline.models import size
from pipeline.models.checkpoint import Checkpoint
from pipeline.records.candidates import Candidate, Mobile
from pipeline.records.quantization import ORIGINAL, QAT, Quantization, candidate_of
from pipeline.runners.trial import hold_to_limit, try_onnx, try_runner
from pipeline.settings.export import ExportOnnx


@dataclass(frozen=True)
class Exporter:
    """Writes candidates into a directory, each held to the PyTorch model that it was made from."""

    config: ExportOnnx
    data: Mapping[str, str]
    """The name of the data set and its hash, for the metadata of every file."""
    images: NDArray[np.uint8]
    """What every candidate answers beside PyTorch, (N, C, H, W)."""
    out: Path

    def float_candidate(self, checkpoint: Checkpoint, name: str, parent: str | None, made_by: str) -> Candidate:
        """Write a float candidate.

        Raises `ModelError` where the graph does not run, or differs by more than ``export_onnx.max_difference``.
        """
        file = write_float(checkpoint, name, self.config.opset, self.data, self.out)
        line = {"source": name, "parent": parent, "made_by": made_by, "target": "any"}
        made = self._described(name, file, checkpoint, line)
        hold_to_limit(f"candidate {name!r}", made.parity, self.config.max_difference)
        return made

    def quantized_candidate(
        self, quantized: Path, target: str, original: Checkpoint, record: Quantization
    ) -> Candidate:
        """Write what `quantize` left in `quantized` for `target`, made from `original`. Raises `ModelError`."""
        name = candidate_of(target)
        file = copy_quantized(quantized / target, name, original, self.data, self.out)
        checkpoint = rounded_checkpoint(file, original, quantized / QAT)
        line: dict[str, str | None] = {"source": ORIGINAL, "parent": ORIGINAL, "made_by": "quantize", "target": target}
        line["gives_way_to"] = record.gives_way_to(target)
        return self._described(name, file, checkpoint, line)

    def mobile_form(self, checkpoint: Checkpoint, name: str) -> Mobile:
        """Write a float candidate as an ExecuTorch program beside its ONNX file. Raises `ModelError` as for a float one."""
        file = self.out / name / "model.pte"
        facts = {**lineage(checkpoint, self.data), "precision": "float32"}
        left = executorch.export(checkpoint.spec, checkpoint.network, file, facts)
        most = executorch.MAX_BATCH
        runner = executorch.MobileRunner(file)
        parity = try_runner(runner, f"{name} for phones", checkpoint, self.images, (1, 7, most), most)
        hold_to_limit(f"the mobile form of {name!r}", parity, self.config.max_difference)
        return Mobile(
            candidate=name, format="executorch", file=f"{name}/{file.name}", **content(file), left_behind=left,
            parity=parity,
        )  # fmt: skip

    def _described(self, name: str, file: Path, checkpoint: Checkpoint, line: Mapping[str, Any]) -> Candidate:
        """Run the candidate in `file` beside `checkpoint` in PyTorch and say what it is; `line` is where it comes from."""
        precision = says(file).get("precision", "int8")
        return Candidate(
            name=name,
            file=f"{name}/{file.name}",
            **content(file),
            parameters=size.parameters(checkpoint.network),
            macs=size.macs(checkpoint.network, checkpoint.spec.image_shape),
            precision=precision,
            parity=try_onnx(file, name, precision, checkpoint, self.images),
            **line,
        )
