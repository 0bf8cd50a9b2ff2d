"""A model as a directory: `model.json` (its ModelSpec) and `model.safetensors` (its weights). Never a pickle.

A pruned model is rebuilt by making its architecture and giving each layer the width that the pruning plan recorded, so
nothing but tensors is read back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import components
from pipeline.errors import ModelError
from pipeline.files import sha256
from pipeline.models import surgery
from pipeline.models.preprocessing import Normalisation
from pipeline.models.spec import SPEC_FILE, ModelSpec, load_spec, save_spec

WEIGHTS_FILE = "model.safetensors"


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
    save_spec(directory, spec)


def load(directory: Path) -> tuple[ModelSpec, nn.Module]:
    """Return the spec and the network in evaluation mode, on the CPU. Raises `ModelError`."""
    spec = load_spec(directory)
    network = build(spec)
    try:
        network.load_state_dict(load_file(directory / WEIGHTS_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{directory / WEIGHTS_FILE} does not fit {SPEC_FILE} beside it: {error}") from error
    return spec, network.eval()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that has been read: pass it along instead of reading it again."""

    directory: Path
    spec: ModelSpec
    network: nn.Module
    """In evaluation mode, on the CPU. Whoever changes it takes a copy."""

    @classmethod
    def load(cls, directory: Path) -> Checkpoint:
        """Read the checkpoint in `directory`. Raises `ModelError`."""
        return cls(directory, *load(directory))

    @cached_property
    def weights_sha256(self) -> str:
        """The hash of the file of weights."""
        return sha256(self.directory / WEIGHTS_FILE)


class WithPreprocessing(nn.Module):
    """A network that takes raw pixels: (N, C, H, W) uint8 -> (N, classes) float32 logits. This is what is exported."""

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.preprocessing = Normalisation.of(spec.preprocessing).module()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, classes) float32."""
        return self.network(self.preprocessing(image))


def normalise(spec: ModelSpec, images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> the float images that the network takes."""
    return Normalisation.of(spec.preprocessing).module().to(images.device)(images)
