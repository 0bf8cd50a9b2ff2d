"""`candidates.json`: what there is to choose from, and which bytes each one is.

Light: the command line, the report and promotion read them without PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from pipeline.errors import ModelError, near_miss
from pipeline.records.measures import Parity
from pipeline.records.record import Record, read, write

CANDIDATES_FILE = "candidates.json"
MODEL_FILE = "model.onnx"
"""The graph of each candidate, wherever it lies: among the exported ones, in the registry, in Triton's repository."""


class Candidate(Record):
    """One ONNX file that could be served."""

    name: str
    file: str
    """Path of the ONNX file, relative to candidates.json; model.json stands beside it."""
    sha256: str
    size_bytes: int
    parameters: int
    """Of the PyTorch model that it was made from."""
    macs: int
    """Multiply-accumulates for one image, of the PyTorch model that it was made from."""
    precision: str
    """Such as float32 or int8, as the file's own metadata says."""
    target: str
    """The runtime that it is written for, such as cpu or tensorrt; any where every runtime takes it."""
    source: str
    """The candidate whose checkpoint it was made from: itself where it is float."""
    parent: str | None = None
    """The candidate that it was made smaller from; None for the first of its line."""
    made_by: str | None = None
    """The stage that made it from its parent."""
    parity: Parity
    gives_way_to: str | None = None
    """The float candidate to serve in its stead, where `quantize` found int8 to be slower than it on this machine."""


class Mobile(Record):
    """A candidate's twin for phones."""

    candidate: str
    format: Literal["executorch"]
    file: str
    """Path relative to candidates.json."""
    sha256: str
    size_bytes: int
    left_behind: tuple[str, ...]
    """Operators that XNNPACK's kernels did not take: portable ones run them, slowly."""
    parity: Parity
    """Against PyTorch, in ExecuTorch's own Python runtime."""


class Candidates(Record):
    """All that `export_onnx` wrote."""

    candidates: tuple[Candidate, ...]
    labels: tuple[str, ...]
    mobile: tuple[Mobile, ...] = ()
    """Where ``export_onnx.mobile`` asks for them."""

    def named(self, name: str) -> Candidate:
        """Return the candidate called `name`. Raises `ModelError`."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        known = [candidate.name for candidate in self.candidates]
        raise ModelError(f"there is no candidate {name!r}; there are: {', '.join(known)}{near_miss(name, known)}")

    def ancestry(self, name: str) -> tuple[Candidate, ...]:
        """Return the line that ends in the candidate called `name`, the oldest first. Raises `ModelError`."""
        line = [self.named(name)]
        while line[0].parent is not None:
            line.insert(0, self.named(line[0].parent))
        return tuple(line)

    @model_validator(mode="after")
    def _parents_come_before(self) -> Candidates:
        """Each parent is listed before its children, so that no line runs in a circle."""
        seen: set[str] = set()
        for candidate in self.candidates:
            if candidate.parent is not None and candidate.parent not in seen:
                raise ValueError(
                    f"candidate {candidate.name!r} was made from {candidate.parent!r}, not listed before it"
                )
            seen.add(candidate.name)
        return self


def load_candidates(directory: Path) -> Candidates:
    """Return what `candidates.json` in `directory` says. Raises `ModelError`."""
    return read(directory / CANDIDATES_FILE, Candidates, "export_onnx")


def save_candidates(directory: Path, candidates: Candidates) -> Path:
    """Write `candidates.json` into `directory` and return it. Call it last: that it is there means that all it names is."""
    return write(directory / CANDIDATES_FILE, candidates)
