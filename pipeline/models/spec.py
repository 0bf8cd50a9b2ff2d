"""What a model is except its weights: architecture, pruning plan, inputs, outputs, preprocessing, labels; `model.json`.

The spec is the one source of ONNX axes, TensorRT profiles and `config.pbtxt`. It knows nothing of PyTorch, which serving
does not need and which takes seconds to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ModelError

SPEC_FILE = "model.json"


Dtype = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
]
DTYPES: tuple[str, ...] = get_args(Dtype)
"""Every type of number that a tensor may hold, as NumPy names it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One named tensor that a client sends or gets; `shape` leaves out the batch axis, and -1 in it is any length."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]


class Preprocessing(_Frozen):
    """Raw pixels p become ``(p / 255 - mean) / std``, channel by channel, inside the exported graph."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class PruningStep(_Frozen):
    """What one pruning did; `dropped`, `ranks` and `widths`, in this order, are enough to do it to a fresh network."""

    method: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    """Blocks that were taken out."""
    ranks: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Layer -> ranks of the factors that stand for it; see `surgery.factorise_`."""
    widths: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """(inputs, outputs) of every convolution, batch norm and linear layer whose width this step changed, or of all."""
    removed: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Layer -> output channels that were removed, numbered as before this step."""
    zeros: dict[str, float] = Field(default_factory=dict)
    """Layer -> share of its weights that were set to zero; training on must leave them there."""


class ModelSpec(_Frozen):
    """All that must be known to rebuild, export and serve a model except its weights."""

    architecture: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True
    """Whether every input and output has a batch axis in front."""
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    pruning: tuple[PruningStep, ...] = ()
    folded: dict[str, str] = Field(default_factory=dict)
    """Batch norm -> the convolution that it was folded into, after all pruning."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.inputs[0].shape
        return channels, height, width

    @property
    def sparse(self) -> bool:
        """Whether a step of its plan left 2 of every 4 weights, as NVIDIA's sparse tensor cores want them."""
        return any(step.method == "n_m" and step.arguments == {"n": 2, "m": 4} for step in self.pruning)


def image_classifier(
    architecture: str,
    arguments: dict[str, Any],
    image_shape: tuple[int, int, int],
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
) -> ModelSpec:
    """Return the spec of a network from raw ``image`` (uint8, C x H x W) to ``logits`` (float32, one per label)."""
    return ModelSpec(
        architecture=architecture,
        arguments=arguments,
        inputs=(TensorSpec(name="image", dtype="uint8", shape=image_shape),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(len(labels),)),),
        preprocessing=preprocessing,
        labels=labels,
    )


def save_spec(directory: Path, spec: ModelSpec) -> Path:
    """Write `model.json` into `directory` and return it."""
    path = directory / SPEC_FILE
    path.write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def load_spec(directory: Path) -> ModelSpec:
    """Return the spec in `directory`. Raises `ModelError`."""
    path = directory / SPEC_FILE
    try:
        return ModelSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{directory} holds no whole model: {SPEC_FILE} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise ModelError(f"{path} is not a model's spec: {error}") from error
