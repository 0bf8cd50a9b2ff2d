"""`evaluation.json` and `verdict.json` as types: what `evaluate` measured, and what the gate said to it.

Light: the DAG, the command line and `promote` may import it. Accuracies, drops and shares are fractions, not per cent;
times are milliseconds where the name ends in `_ms`; sizes are bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ModelError

EVALUATION_FILE = "evaluation.json"
VERDICT_FILE = "verdict.json"
GOLDEN_FILE = "golden.safetensors"
"""Validation images (`images`: uint8, N x C x H x W) whose answers the served model must repeat."""
TEACHER = "teacher"
"""The candidate that all others are compared with; it is measured and never promoted."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Record):
    """A measured value and the interval around it, at `Evaluation.confidence`."""

    value: float
    low: float
    high: float


class ReliabilityBin(_Record):
    """The images whose highest probability fell into one of 15 equal bins."""

    confidence: float
    accuracy: float
    images: int


class Quality(_Record):
    """How right a candidate is on one split, and how it differs from the teacher there."""

    images: int
    accuracy: Estimate
    drop: Estimate | None = None
    """Teacher's accuracy minus this one's, paired image by image; None for the teacher itself."""
    mcnemar_p: float | None = None
    """Probability of disagreement this one-sided or more, were both equally accurate (exact McNemar test)."""
    agreement: float
    """Share of images that get the teacher's answer."""
    churn: float
    """Share of images that the teacher gets right and this one wrong."""
    ece: float
    nll: float
    recall: tuple[float | None, ...]
    """One a label; None where the split has no image of it."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by [true label][predicted label]."""
    reliability: tuple[ReliabilityBin, ...]


class Offline(_Record):
    """One runner at one batch size, in-process, on one thread."""

    images_per_second: float
    """Batch size over the median time of a call."""
    p50_ms: float
    p99_ms: float
    calls: int


class Served(_Record):
    """The live Triton endpoint with so many requests in flight, one image each."""

    throughput: float
    """Answered images per second."""
    p50_ms: float
    p99_ms: float
    requests: int
    failures: int
    client_cpu: float | None = None
    """Share of one core that the load generator took from the server's machine."""


class Parity(_Record):
    """Triton's answers beside those of the same file run in this process."""

    images: int
    max_difference: float
    differing: int
    """Images whose logits differ by more than rounding."""


class Measured(_Record):
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
    """The float candidate to serve in its stead, where `quantize` found int8 no faster than it."""
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
    served_parity: Parity | None = None
    note: str | None = None
    """Why something above is missing."""


class Host(_Record):
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


class Evaluation(_Record):
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


class Check(_Record):
    """One limit of the budget, held against one candidate."""

    criterion: str
    """A setting of `budget`, or `failed_requests`, whose limit is always 0."""
    on: str
    """Where the value comes from: validation, test, offline, served or file."""
    limit: float
    value: float
    ok: bool
    shortfall: float
    """How far the value misses the limit, as a share of the limit; 0 where it holds."""
    text: str
    """The check in words and in the user's units."""


class CandidateVerdict(_Record):
    """How one candidate stands at the gate."""

    name: str
    eligible: bool
    reason: str | None = None
    """Why it is not eligible."""
    feasible: bool = False
    """Whether every check holds."""
    shortfall: float = 0.0
    """Sum over its checks."""
    checks: tuple[Check, ...] = ()


class Verdict(_Record):
    """The content of `verdict.json`."""

    verdict: Literal["PROMOTE", "INFEASIBLE"]
    winner: str | None = None
    nearest: str | None = None
    """The candidate that misses least; None beside a winner or where nothing was eligible."""
    misses: tuple[Check, ...] = ()
    """The checks that the nearest candidate fails."""
    sentence: str
    rule: str
    """How a winner is chosen, in words."""
    budget: dict[str, Any]
    candidates: tuple[CandidateVerdict, ...] = ()


_Model = TypeVar("_Model", Evaluation, Verdict)


def load_evaluation(directory: Path) -> Evaluation:
    """Return `evaluation.json` of `directory`. Raises `ModelError`."""
    return _load(directory / EVALUATION_FILE, Evaluation)


def load_verdict(directory: Path) -> Verdict:
    """Return `verdict.json` of `directory`. Raises `ModelError`."""
    return _load(directory / VERDICT_FILE, Verdict)


def save(directory: Path, record: Evaluation | Verdict) -> Path:
    """Write `record` under its own name into `directory` and return the file."""
    path = directory / (EVALUATION_FILE if isinstance(record, Evaluation) else VERDICT_FILE)
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def _load(path: Path, model: type[_Model]) -> _Model:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}): give the directory that `evaluate` wrote"
        ) from error
    except ValidationError as error:
        raise ModelError(f"{path} is not what `evaluate` writes: {error}") from error
