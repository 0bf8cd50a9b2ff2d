"""`evaluation.json` as types: everything that `evaluate` measured of every candidate.

Light: the DAG, the command line and `promote` may import it. Sizes are bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.errors import ModelError
from pipeline.records.measures import Offline, Quality, Served, ServedParity
from pipeline.records.record import Record, read, write

EVALUATION_FILE = "evaluation.json"
GOLDEN_IMAGES_FILE = "golden.safetensors"
"""Validation images (`images`: uint8, N x C x H x W) whose answers the served model must repeat."""
TEACHER = "teacher"
"""The candidate that all others are compared with; it is measured and never promoted."""


class Measured(Record):
    """Everything known of one candidate."""

    name: str
    file: str
    sha256: str
    size_bytes: int
    parameters: int
    macs: int
    precision: str
    target: str
    source: str
    parent: str | None = None
    made_by: str | None = None
    gives_way_to: str | None = None
    """The float candidate to serve in its stead, where `quantize` found int8 to be slower than it."""
    export_parity: dict[str, Any] = Field(default_factory=dict)
    """ONNX beside PyTorch, as `export_onnx` measured it."""
    torch_agreement: float | None = None
    """Share of a sample that PyTorch, run here, answers as the ONNX file does."""
    validation: Quality | None = None
    test: Quality | None = None
    offline: dict[int, Offline] = Field(default_factory=dict)
    """ONNX Runtime by batch size."""
    offline_torch: dict[int, Offline] = Field(default_factory=dict)
    """PyTorch by batch size; float candidates only."""
    served: dict[int, Served] = Field(default_factory=dict)
    """Triton by concurrency."""
    served_parity: ServedParity | None = None
    note: str | None = None
    """Why something above is missing."""


class Host(Record):
    """The machine that the times belong to."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    """Those of the CPU's flags that decide how fast and how exactly int8 runs."""
    system: str
    python: str
    onnxruntime: str
    torch: str
    triton: str | None = None


class Evaluation(Record):
    """The content of `evaluation.json`."""

    labels: tuple[str, ...]
    confidence: float
    candidates: tuple[Measured, ...]
    host: Host
    engines: dict[str, Any] = Field(default_factory=dict)
    """What `build_tensorrt` built, or ``{"skipped": reason}``."""

    @property
    def teacher(self) -> Measured:
        """The candidate that the others are compared with."""
        return self.candidate(TEACHER)

    def candidate(self, name: str) -> Measured:
        """Return the candidate called `name`. Raises `ModelError`."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        known = ", ".join(candidate.name for candidate in self.candidates)
        raise ModelError(f"the evaluation has no candidate {name!r}; it has: {known}")


def load_evaluation(directory: Path) -> Evaluation:
    """Return `evaluation.json` of `directory`. Raises `ModelError`."""
    return read(directory / EVALUATION_FILE, Evaluation, "evaluate")


def save_evaluation(directory: Path, evaluation: Evaluation) -> Path:
    """Write `evaluation.json` into `directory` and return the file."""
    return write(directory / EVALUATION_FILE, evaluation)
