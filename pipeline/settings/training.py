"""Settings of training: processes, one fit, the teacher and the student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.settings.base import Component, Fraction, PositiveInt, Section


class Distributed(Section):
    """How training is spread over processes."""

    strategy: Literal["ddp"] = Field("ddp", description="How the model is spread: ddp replicates it in every process.")
    nproc: Literal["auto"] | PositiveInt = Field(
        "auto", description="Processes on this machine: auto is one per GPU, or 2 on a CPU with 2 or more cores."
    )
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="auto is nccl with GPUs and gloo without.")
    max_restarts: int = Field(
        0, ge=0, description="How often torchrun restarts failed processes before the stage fails."
    )


class Fit(Section):
    """One training: how long, how fast and from which views."""

    epochs: PositiveInt = Field(4, description="Passes over the training images.")
    batch_size: PositiveInt = Field(128, description="Images per step over all processes together.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    lr: float = Field(0.1, gt=0.0, description="Maximum learning rate.")
    weight_decay: float = Field(5e-4, ge=0.0, description="Weight decay; not applied to biases and batch norm.")
    schedule: Literal["cosine", "onecycle", "constant"] = Field("onecycle", description="Learning rate over the steps.")
    warmup: Fraction = Field(0.2, description="Share of all steps in which the learning rate rises.")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the label spread over all classes.")
    amp: Literal["bf16", "off"] = Field(
        "bf16", description="Arithmetic of the forward pass; master weights stay float32."
    )
    crop_padding: int = Field(2, ge=0, description="Random crop after padding by so many pixels; 0 turns it off.")
    horizontal_flip: bool = Field(True, description="Mirror half of the training images.")
    random_erasing: Fraction = Field(0.0, description="Share of the training images of which a rectangle is erased.")
    ema_decay: float = Field(
        0.0, ge=0.0, lt=1.0, description="Decay of the exponential moving average that is evaluated and kept; 0 is off."
    )


class Finetune(Fit):
    """Quantization-aware training, which may be left out."""

    epochs: int = Field(0, ge=0, description="Epochs of quantization-aware training; 0 leaves it out.")


class Train(Section):
    """The teacher."""

    model: Component = Field(
        Component(name="resnet", width=32, blocks=[1, 1, 1]), description="The teacher's architecture."
    )
    fit: Fit = Field(Fit(), description="How the teacher is trained.")


class Distill(Section):
    """The student."""

    model: Component = Field(
        Component(name="resnet", width=12, blocks=[1, 1, 1]), description="The student's architecture."
    )
    loss: Component = Field(Component(name="kd", temperature=4.0, alpha=0.9), description="The distillation loss.")
    fit: Fit = Field(Fit(), description="How the student is trained.")
    baseline: bool = Field(False, description="Also train the same student without a teacher and keep the better one.")
