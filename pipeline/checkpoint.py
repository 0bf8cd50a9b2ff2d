"""A model as a directory: `model.json` (its ModelSpec) and `model.safetensors` (its weights). Never a pickle.

The spec is the one source of ONNX axes, TensorRT profiles and `config.pbtxt`. A pruned model is rebuilt by making its
architecture and giving each layer the width that the pruning plan recorded, so nothing but tensors is read back.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import components, surgery
from pipeline.errors import ModelError

SPEC_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One named tensor that a client sends or gets; `shape` leaves out the batch axis, and -1 in it is any length."""

    name: str
    dtype: Literal[
        "bool",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "float32",
        "float64",
    ]
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
    """All that must be known to rebuild, export and serve a model, but its weights."""

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
    """Return the spec of a network from raw ``image`` (uint8, C x H x W) to ``logits`` (float32, one a label)."""
    return ModelSpec(
        architecture=architecture,
        arguments=arguments,
        inputs=(TensorSpec(name="image", dtype="uint8", shape=image_shape),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(len(labels),)),),
        preprocessing=preprocessing,
        labels=labels,
    )


def build(spec: ModelSpec) -> nn.Module:
    """Return the network with fresh weights. It takes normalised float images; see `WithPreprocessing` for raw ones."""
    arguments = {"in_channels": spec.image_shape[0], "classes": len(spec.labels), **spec.arguments}
    network = components.build("models", spec.architecture, arguments)
    for step in spec.pruning:
        surgery.drop_(network, step.dropped)
        surgery.factorise_(network, step.ranks)
        surgery.set_widths_(network, step.widths)
    surgery.fold_(network, spec.folded)
    return network


def save(directory: Path, spec: ModelSpec, network: nn.Module) -> None:
    """Write spec and weights into `directory`; the spec comes last, so that its presence means a whole checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, directory / WEIGHTS_FILE)
    (directory / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_spec(directory: Path) -> ModelSpec:
    """Return the spec in `directory`. Raises `ModelError`."""
    path = directory / SPEC_FILE
    try:
        return ModelSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{directory} holds no whole model: {SPEC_FILE} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise ModelError(f"{path} is not a model's spec: {error}") from error


def load(directory: Path) -> tuple[ModelSpec, nn.Module]:
    """Return the spec and the network in evaluation mode, on the CPU. Raises `ModelError`."""
    spec = load_spec(directory)
    network = build(spec)
    try:
        network.load_state_dict(load_file(directory / WEIGHTS_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{directory / WEIGHTS_FILE} does not fit {SPEC_FILE} beside it: {error}") from error
    return spec, network.eval()


class WithPreprocessing(nn.Module):
    """A network that takes raw pixels: (N, C, H, W) uint8 -> (N, classes) float32 logits. This is what is exported."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(spec.preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.preprocessing.std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, classes) float32."""
        return self.network((image.float() / 255.0 - self.mean) / self.std)


def normalise(spec: ModelSpec, images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> the float images that the network takes."""
    mean = torch.tensor(spec.preprocessing.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.preprocessing.std, device=images.device).view(1, -1, 1, 1)
    return (images.float() / 255.0 - mean) / std


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
