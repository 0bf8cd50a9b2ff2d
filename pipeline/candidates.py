"""`candidates.json` and `engines.json`: what there is to choose from, and which bytes each one is.

Light: the command line, the report and promotion read them without PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ModelError, near_miss

CANDIDATES_FILE = "candidates.json"
ENGINES_FILE = "engines.json"
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
    precision: Literal["float32", "int8"]
    target: Literal["any", "cpu", "tensorrt"]
    source: Literal["teacher", "student", "pruned"]
    parity: Parity


class Candidates(_Frozen):
    """All that `export_onnx` wrote."""

    candidates: tuple[Candidate, ...]
    labels: tuple[str, ...]

    def named(self, name: str) -> Candidate:
        """Return the candidate called `name`. Raises `ModelError`."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        known = [candidate.name for candidate in self.candidates]
        raise ModelError(f"there is no candidate {name!r}; there are: {', '.join(known)}{near_miss(name, known)}")


class Engine(_Frozen):
    """One built engine."""

    candidate: str
    file: str
    """Path of the plan, relative to engines.json; model.json stands beside it."""
    sha256: str
    size_bytes: int
    onnx_sha256: str
    build_seconds: float
    int8_layers: int
    """Layers with an int8 output: 0 says that nothing was quantized."""
    layers: tuple[str, ...]
    """Each layer's name, kind and output type; see `Engines.layers_from`."""


class Profile(_Frozen):
    """Batch sizes that every engine takes (min, max) and is tuned for (opt)."""

    min: int
    opt: int
    max: int


class Engines(_Frozen):
    """All that `build_tensorrt` wrote, or why it wrote nothing."""

    skipped: str | None = None
    builder: Literal["tensorrt", "tensorrt_rtx"] | None = None
    builder_version: str | None = None
    gpu: str | None = None
    """Name of the GPU that it was built on; None where it was built ahead of time on a CPU."""
    driver: str | None = None
    targets: tuple[str, ...] = ()
    """Compute capabilities that the engines are for, such as SM89."""
    profile: Profile | None = None
    layers_from: Literal["engine", "network"] | None = None
    """engine: the engine inspector's list, after fusing; network: the parsed list before it, where no GPU can load the engine."""
    engines: tuple[Engine, ...] = ()


def load_candidates(directory: Path) -> Candidates:
    """Return what `candidates.json` in `directory` says. Raises `ModelError`."""
    return _load(directory, CANDIDATES_FILE, Candidates, "export_onnx")


def load_engines(directory: Path) -> Engines:
    """Return what `engines.json` in `directory` says. Raises `ModelError`."""
    return _load(directory, ENGINES_FILE, Engines, "build_tensorrt")


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
