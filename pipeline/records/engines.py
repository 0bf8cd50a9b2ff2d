"""`engines.json` and `engine.json`: what `build_tensorrt` built, and which bytes each engine is. Light, as `candidates` is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.records.measures import Offline, Parity
from pipeline.records.record import Record, read, write

ENGINES_FILE = "engines.json"
ENGINE_FILE = "engine.json"
"""Beside each plan: what that one is."""
PLAN_FILE = "model.plan"
"""The engine itself, wherever it lies."""
LAYERS_FILE = "layers.json"
"""Beside each plan: what it is made of."""


class Profile(Record):
    """Batch sizes that every engine takes (min, max) and is tuned for (opt)."""

    min: int
    opt: int
    max: int


class OnGpu(Record):
    """What an engine did on the GPU that it was built on."""

    accuracy: float
    """Share of the validation images that it answers rightly."""
    accuracy_onnx: float
    """The same of the ONNX file that it was built from, in ONNX Runtime on the CPU."""
    parity: Parity
    """Against that ONNX file."""
    latency: dict[int, Offline]
    """By batch size; the copies to and from the GPU are in it."""


class Engine(Record):
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


class Engines(Record):
    """All that `build_tensorrt` wrote, or why it wrote nothing."""

    skipped: str | None = None
    engines: tuple[Engine, ...] = ()


def load_engines(directory: Path) -> Engines:
    """Return what `engines.json` in `directory` says. Raises `ModelError`."""
    return read(directory / ENGINES_FILE, Engines, "build_tensorrt")


def save_engines(directory: Path, engines: Engines) -> Path:
    """Write `engines.json` into `directory` and return it. Call it last: that it is there means that all it names is."""
    return write(directory / ENGINES_FILE, engines)


def load_engine(plan: Path) -> Engine:
    """Return what `engine.json` beside the plan file says. Raises `ModelError`."""
    return read(plan.parent / ENGINE_FILE, Engine, "build_tensorrt")


def save_engine(directory: Path, engine: Engine) -> Path:
    """Write `engine.json` beside the plan, which is where `engine` says below `directory`, and return it."""
    return write((directory / engine.file).parent / ENGINE_FILE, engine)
