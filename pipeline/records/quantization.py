"""`quantization.json`: what `quantize` wrote for each target, and which candidate it says to serve."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict

from pipeline.records.record import Record, read

QUANTIZATION_FILE = "quantization.json"
QAT = "qat"
"""Directory, beside it, of the checkpoint that was trained while it rounded."""
ORIGINAL = "pruned"
"""The candidate that is quantized."""


class Quantization(Record):
    """What later stages read of the file; it says more, for people."""

    model_config = ConfigDict(extra="ignore")

    serve: str | None = None
    """The candidate to serve, the quantized one or its original; None where no form for cpu was made."""
    targets: dict[str, dict[str, float]]
    """Target -> what its quantizer counted; the form is in ``<target>/model.onnx``."""

    def gives_way_to(self, target: str) -> str | None:
        """Return the candidate to serve in the place of what was quantized for `target`, if the record says so."""
        return self.serve if target == "cpu" and self.serve != candidate_of(target) else None


def candidate_of(target: str) -> str:
    """Return what the candidate is called that is quantized for `target`."""
    return "int8" if target == "cpu" else f"int8_{target}"


def load_quantization(directory: Path) -> Quantization:
    """Return what `quantization.json` in `directory` says. Raises `ModelError`."""
    return read(directory / QUANTIZATION_FILE, Quantization, "quantize")
