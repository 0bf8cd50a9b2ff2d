"""`candidates.json` and `engines.json`: what there is to choose from, and which bytes each one is.

Light: the command line, the report and promotion read them without PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.errors import ModelError, near_miss
from pipeline.records.evaluation import Offline

CANDIDATES_FILE = "candidates.json"
ENGINES_FILE = "engines.json"
ENGINE_FILE = "engine.json"
"""Beside each plan: what that one is."""
LAYERS_FILE = "layers.json"
"""Beside each plan: what it is made of."""
_File = TypeVar("_File", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parity(_Frozen):
    """How far ONNX Runtime's answers are from those of the PyTorch model that a candidate was made from."""

    images: int
    max_difference: float
    """Largest absolute difference of any logit."""
    mean_difference: float
    changed_predictions: int
    """Images whose most likely class is another one."""


class Candidate(_Frozen):
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
    """The float candidate to serve in its stead, where `quantize` found int8 no faster than it on this machine."""


class Mobile(_Frozen):
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


class Candidates(_Frozen):
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


class Profile(_Frozen):
    """Batch sizes that every engine takes (min, max) and is tuned for (opt)."""

    min: int
    opt: int
    max: int


class OnGpu(_Frozen):
    """What an engine did on the GPU that it was built on."""

    accuracy: float
    """Share of the validation images that it answers rightly."""
    accuracy_onnx: float
    """The same of the ONNX file that it was built from, in ONNX Runtime on the CPU."""
    parity: Parity
    """Against that ONNX file."""
    latency: dict[int, Offline]
    """By batch size; the copies to and from the GPU are in it."""


class Engine(_Frozen):
    """One built engine: all that `engine.json` beside it says."""

    candidate: str
    file: str
    """Path of the plan, relative to engines.json; model.json, engine.json and layers.json stand beside it."""
    sha256: str
    size_bytes: int
    onnx_sha256: str
    builder: Literal["tensorrt", "tensorrt_rtx"]
    builder_version: str
    gpu: str | None
    """Name of the GPU that it was built on; None where it was built ahead of time on a CPU."""
    driver: str | None
    targets: tuple[str, ...]
    """Compute capabilities that it is for, such as SM89."""
    profile: Profile
    build_seconds: float
    layers_from: Literal["engine", "network"]
    """engine: the engine inspector's list, after fusing; network: the parsed list before it, where no GPU can load the engine."""
    layers: int
    """Lines of layers.json."""
    precisions: dict[str, int]
    """Type -> layers that give out tensors of it. Without int8 nothing was quantized, without float16 nothing is half."""
    sparse_asked: bool = False
    """Whether the builder might take sparse kernels, since the plan says that 2 of every 4 weights are zero."""
    sparse_layers: tuple[str, ...] | None = None
    """Layers that got sparse kernels; None where the builder does not tell, as TensorRT-RTX does not."""
    on_gpu: OnGpu | None = None
    not_measured: str | None = None
    """Why `on_gpu` is missing."""


class Engines(_Frozen):
    """All that `build_tensorrt` wrote, or why it wrote nothing."""

    skipped: str | None = None
    engines: tuple[Engine, ...] = ()


def load_candidates(directory: Path) -> Candidates:
    """Return what `candidates.json` in `directory` says. Raises `ModelError`."""
    return _load(directory, CANDIDATES_FILE, Candidates, "export_onnx")


def load_engines(directory: Path) -> Engines:
    """Return what `engines.json` in `directory` says. Raises `ModelError`."""
    return _load(directory, ENGINES_FILE, Engines, "build_tensorrt")


def load_engine(plan: Path) -> Engine:
    """Return what `engine.json` beside the plan file says. Raises `ModelError`."""
    return _load(plan.parent, ENGINE_FILE, Engine, "build_tensorrt")


def save(directory: Path, what: Candidates | Engines) -> None:
    """Write `what` into `directory`. Call it last: that the file is there means that all it names is."""
    file = CANDIDATES_FILE if isinstance(what, Candidates) else ENGINES_FILE
    (directory / file).write_text(what.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _load(directory: Path, file: str, kind: type[_File], stage: str) -> _File:
    try:
        return kind.model_validate_json((directory / file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{directory} is not what {stage} writes: {file} cannot be read ({error.strerror}). Run `flyweight {stage}`."
        ) from error
    except ValidationError as error:
        raise ModelError(f"{directory / file} does not hold: {error}") from error
