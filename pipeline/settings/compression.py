"""Settings of compression: pruning and quantization."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.errors import SettingsError
from pipeline.settings.base import Component, PositiveInt, Section
from pipeline.settings.training import Finetune, Fit


class Prune(Section):
    """A smaller network, by one method or several, then recovery."""

    pruner: Component = Field(
        Component(name="channel", keep_macs=0.6, round_to=8), description="The method and its target."
    )
    then: tuple[Component, ...] = Field(
        (), description="Further pruners, each of which takes what the one before it left, recovered."
    )
    rounds: PositiveInt = Field(
        1,
        description="Steps in which each pruner reaches its target, with recovery after every one; "
        "a method without intermediate steps takes one.",
    )
    tolerated_drop: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Validation accuracy that a layer alone may cost before recovery: a sweep over all layers then limits "
        "what prune.pruner, which must be channel, takes of each; empty is no sweep.",
    )
    round_epochs: PositiveInt = Field(1, description="Epochs of recovery after every step but the last.")
    loss: Component = Field(
        Component(name="kd", temperature=4.0, alpha=0.9), description="The loss while the pruned model recovers."
    )
    fit: Fit = Field(Fit(epochs=2, lr=0.05), description="How the pruned model recovers.")


class Quantize(Section):
    """Fewer bits."""

    quantizer: Component = Field(
        Component(name="static", calibration="minmax"), description="The method and its settings."
    )
    calibration_images: PositiveInt = Field(512, description="Training images that set the ranges of activations.")
    targets: tuple[Literal["cpu", "tensorrt"], ...] = Field(
        ("cpu", "tensorrt"), min_length=1, description="Graph forms to write: cpu is U8S8, tensorrt is symmetric S8S8."
    )
    loss: Component = Field(
        Component(name="kd", temperature=4.0, alpha=0.9), description="The loss of quantization-aware training."
    )
    fit: Finetune = Field(
        Finetune(lr=0.001, schedule="cosine", amp="off"),
        description="Quantization-aware training; what it makes is kept only if it is better than without.",
    )

    def build_quantizer(self) -> Any:
        """Return the quantizer made with its arguments. Raises `SettingsError`, also where it cannot write a target.

        A quantizer of the user's own that has no `targets` is taken to write all of them.
        """
        quantizer = self.quantizer.build("quantizers", "quantize.quantizer")
        writes: tuple[str, ...] = getattr(quantizer, "targets", self.targets)
        if misfits := [target for target in self.targets if target not in writes]:
            without = " and take int8_tensorrt out of build_tensorrt.candidates" if "tensorrt" in misfits else ""
            raise SettingsError(
                f"quantize.targets is [{', '.join(self.targets)}], but the quantizer {self.quantizer.name!r} writes "
                f"{' and '.join(writes)} only: set quantize.targets to [{', '.join(writes)}]{without}, or "
                f"quantize.quantizer.name to static, which writes both"
            )
        return quantizer
