"""The Protocols that stages and components meet at. No class here is meant to be inherited from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.models.spec import ModelSpec, PruningStep

Metrics: TypeAlias = Mapping[str, float]
"""What a stage returns: flat names to numbers, in SI units or as the name says (`_ms`, `_mb`)."""


class Dataset(Protocol):
    """Where a data set comes from. Its file in `datasets/` names a class of this shape as COMPONENT."""

    labels: tuple[str, ...]
    image_shape: tuple[int, int, int]

    def fetch(self, directory: Path) -> None:
        """Put the original files into `directory`, each checked by its SHA-256. Raises `DataError` listing what was tried."""

    def read(self, directory: Path) -> Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Return ``{"train": (images (N, C, H, W), labels (N,)), "test": ...}`` from fetched files."""


class DistillationLoss(Protocol):
    """A loss between what the student says, what the teacher says and what is true."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """(N, C), (N, C), (N,) int64 -> scalar."""


class Pruner(Protocol):
    """Makes a network smaller in place."""

    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Prune `network` in place and return the step to add to its spec.

        `batches` yields (normalised images (N, C, H, W), labels (N,)) for pruners that look at data.
        Raises `ModelError` where nothing was pruned or the target cannot be reached.
        """

    def rounds(self, count: int) -> Sequence[Pruner]:
        """Return pruners that, called one after another on the same network, reach this one's target in steps.

        `count` of them, or as many as the method can be cut into: one where it knows no half way.
        """


class Rewrite(Protocol):
    """Changes a network for the time of its training: what it computes, or which weights it may have."""

    def apply(self, spec: ModelSpec, network: nn.Module) -> nn.Module:
        """Return what is trained in place of `network`, in evaluation mode; it may be `network` itself."""

    def after_step(self, network: nn.Module) -> None:
        """Repair, in place, what a step of the optimizer did to the network that `apply` returned."""

    def files(self, network: nn.Module, out: Path) -> None:
        """Write into `out` what was learned beside the weights that the architecture has."""

    def restore(self, network: nn.Module) -> nn.Module:
        """Return the network of the architecture, with the weights that it learned as `network`."""


class Quantizer(Protocol):
    """Writes a quantized ONNX file from a float one.

    One that cannot write both targets says which it can in an attribute ``targets``, such as ``("cpu",)``: then
    `flyweight check` refuses settings that ask for another.
    """

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Quantize `onnx_file` to `out` in the form that `target` ('cpu' or 'tensorrt') wants.

        `calibration` holds raw images (N, C, H, W). Returns what is known of the result, e.g. ``{"fused_integer_ops": 12}``.
        """


class Runner(Protocol):
    """A model that answers: PyTorch, ONNX Runtime and TensorRT all look like this."""

    name: str

    def __call__(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """Named batched arrays in, named batched arrays out."""

    def close(self) -> None:
        """Let go of sessions, engines and connections."""


class Registry(Protocol):
    """Where promoted models are recorded; a version is a small positive integer that is never used twice."""

    def register(self, name: str, directory: Path, tags: dict[str, str]) -> int:
        """Record the files in `directory` as a new version of the model `name` and return the version."""

    def attach(self, name: str, version: int, file: Path) -> None:
        """Put a further file beside those of a version; one of the same name is replaced."""

    def fetch(self, name: str, version: int, directory: Path) -> Mapping[str, str]:
        """Put all files of a version into `directory` and return its tags.

        Raises `PromotionError` where there is no such version.
        """

    def aliases(self, name: str) -> Mapping[str, int]:
        """Return alias -> version of the model `name`; nothing for one that was never registered."""

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Make `alias` of the model `name` point at `version`."""

    def version_with_sha(self, name: str, sha256: str) -> int | None:
        """Return the newest version of `name` that was registered with the tag ``sha256``, or None."""
