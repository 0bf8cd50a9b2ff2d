"""Every setting: one typed schema behind `params.yaml`, recipes, `--set`, the Airflow form and docs/settings.md.

`load()` overlays, later wins: `params.yaml`, `recipes/<recipe>.yaml`, then single settings such as ``train.fit.epochs=3``.
It refuses unknown keys with the near miss, and values of another type: neither "3" nor true is a number of epochs.
Nothing heavy is imported: a DAG file may import this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import components, graph
from pipeline.errors import SettingsError, near_miss
from pipeline.machine import workspace
from pipeline.settings import yaml12

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: immutable, and without room for a misspelt key."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Component(BaseModel):
    """``{name: kd, temperature: 4}``: a component's name, and its constructor's arguments beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(description="File name in the component folder, or 'package.module:Name' of your own.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings beside the name: what the constructor takes."""
        return dict(self.model_extra or {})

    def build(self, kind: str, setting: str = "") -> Any:
        """Return the component made with these arguments. Raises `SettingsError`, which names `setting` if it is given."""
        return components.build(kind, self.name, self.arguments, setting)


class Data(Section):
    """Which data set a run uses."""

    dataset: str = Field("fashion_mnist", description="Data set to use: a name under 'datasets'.")


class DatasetSplit(Section):
    """How one data set is split. DVC pins these: they are read from params.yaml alone."""

    validation_images: PositiveInt = Field(description="Training images set aside for validation, stratified by class.")
    split_seed: int = Field(17, ge=0, description="Seed of the split.")


class Expectations(Section):
    """What `validate` holds the data to."""

    min_images: PositiveInt = Field(100, description="Fewest images that each split may have.")
    max_class_imbalance: float = Field(
        2.0, ge=1.0, description="Largest allowed ratio of the most to the least frequent class of a split."
    )
    max_duplicate_share: Fraction = Field(
        0.001, description="Largest share of exact duplicates inside a split; 0 allows none."
    )
    max_leaked_images: int = Field(0, ge=0, description="Most images of one split that may occur in another.")
    max_pixel_drift: float = Field(
        0.25,
        gt=0.0,
        description="Largest allowed change of a class's mean pixel against the baseline, in baseline standard deviations.",
    )


class Distributed(Section):
    """How training is spread over processes."""

    strategy: Literal["ddp"] = Field("ddp", description="How the model is spread: ddp copies it to every process.")
    nproc: Literal["auto"] | PositiveInt = Field(
        "auto", description="Processes on this machine: auto is one a GPU, or 2 on a CPU with 2 or more cores."
    )
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="auto is nccl with GPUs and gloo without.")
    max_restarts: int = Field(
        0, ge=0, description="How often torchrun restarts failed processes before the stage fails."
    )


class Fit(Section):
    """One training: how long, how fast and from which views."""

    epochs: PositiveInt = Field(4, description="Passes over the training images.")
    batch_size: PositiveInt = Field(128, description="Images a step over all processes together.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    lr: float = Field(0.1, gt=0.0, description="Highest learning rate.")
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
        "a method that knows no half way takes one.",
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


class Finetune(Fit):
    """Quantization-aware training, which may be left out."""

    epochs: int = Field(0, ge=0, description="Epochs of quantization-aware training; 0 leaves it out.")


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


class ExportOnnx(Section):
    """ONNX files and their parity with PyTorch."""

    opset: int = Field(20, ge=18, le=23, description="ONNX operator set.")
    parity_images: PositiveInt = Field(1000, description="Validation images on which PyTorch and ONNX are compared.")
    max_difference: float = Field(
        1e-2, gt=0.0, description="Largest allowed difference of a float model's outputs from PyTorch's."
    )
    mobile: Literal["off", "executorch"] = Field(
        "off",
        description="executorch also writes student and pruned for phones (`pip install flyweight[mobile]`).",
    )


class BuildTensorrt(Section):
    """TensorRT engines."""

    builder: Literal["auto", "tensorrt", "tensorrt_rtx", "off"] = Field(
        "auto", description="auto takes tensorrt where it and a GPU are there, else tensorrt_rtx ahead of time."
    )
    candidates: tuple[str, ...] = Field(
        ("pruned", "int8_tensorrt"),
        description="Which candidates get an engine: teacher, student, pruned or int8_tensorrt.",
    )


class Serving(Section):
    """How Triton serves the proxy."""

    model: str = Field(
        "proxy", pattern=r"^[a-z][a-z0-9_]{0,63}$", description="Model name in Triton and in the MLflow registry."
    )
    backend: Literal["python", "onnxruntime", "tensorrt"] = Field(
        "python",
        description="python is Flyweight's model.py around ONNX Runtime, for every Triton; the others are Triton's own.",
    )
    max_batch_size: PositiveInt = Field(64, description="Most requests that Triton puts together.")
    instances: PositiveInt = Field(2, description="Copies of the model that answer side by side, on each GPU if any.")
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="GPUs that hold the copies, by number; none is the CPU. For the native backends."
    )
    threads: PositiveInt = Field(
        1, description="Threads of each copy; instances x threads should not exceed the cores."
    )
    queue_delay_us: int = Field(
        0, ge=0, description="Longest that a request waits for others to fill its batch, in microseconds."
    )
    max_queue_size: int = Field(
        0, ge=0, description="Most requests that may wait; what is beyond is refused. 0 is no limit."
    )
    queue_timeout_ms: float = Field(
        0.0,
        ge=0.0,
        description="Longest that requests may wait on average before some are refused, in ms. 0 is no limit.",
    )
    priority_levels: int = Field(
        0,
        ge=0,
        description="Levels of priority that a request may name, 1 first, the last by default; 0 is none. They stall Triton 2.51.",
    )
    warmup: bool = Field(True, description="Answer made-up requests before the model counts as ready.")
    response_cache: bool = Field(
        False, description="Answer a request that was seen before from memory. Triton compares 64-bit hashes alone."
    )
    units: int = Field(
        0,
        ge=0,
        description="What a copy takes of FLYWEIGHT_TRITON_UNITS while it answers (Triton's rate limiter); 0 takes nothing.",
    )

    def contradictions(self) -> list[str]:
        """Return what in this section contradicts itself, each with its cure."""
        found = []
        if self.gpus and self.backend == "python":
            found.append(
                f"serving.gpus is {list(self.gpus)}, but serving.backend 'python' answers on the CPU: "
                f"take 'onnxruntime' or 'tensorrt', or no GPUs"
            )
        if self.backend == "tensorrt" and not self.gpus:
            found.append("serving.backend is 'tensorrt' and serving.gpus is empty: name the GPUs, for example [0]")
        if self.response_cache and self.backend == "python":
            found.append(
                "serving.response_cache is true, but an answer from memory cannot say which bytes gave it, as "
                "serving.backend 'python' has to: turn it off, or take 'onnxruntime'"
            )
        if self.response_cache and self.gpus:
            found.append("serving.response_cache is true, but Triton caches answers from the CPU alone: turn it off")
        return found


class Evaluate(Section):
    """What is measured before the gate."""

    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of every confidence interval.")
    bootstrap: PositiveInt = Field(2000, description="Resamples of each bootstrap interval.")
    offline_batches: tuple[PositiveInt, ...] = Field(
        (1, 64), min_length=1, description="Batch sizes at which ONNX Runtime is timed on one thread."
    )
    offline_seconds: float = Field(1.0, gt=0.0, description="Least time of each offline timing.")
    concurrency: tuple[PositiveInt, ...] = Field(
        (1, 16, 64), min_length=1, description="Numbers of requests in flight at which Triton is measured."
    )
    load_seconds: float = Field(2.0, gt=0.0, description="Length of each load measurement through Triton.")


class Budget(Section):
    """What the user can afford: the gate."""

    accuracy_drop: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Largest drop of test accuracy against the teacher; 0.01 is one point. The upper confidence bound is held to it.",
    )
    size_ratio: float = Field(1.0, gt=0.0, description="Times smaller on disk than the teacher, at least.")
    speedup: float = Field(
        1.0,
        gt=0.0,
        description="Minimum of times the teacher's images/s offline (largest batch), for the lower bound.",
    )
    served_speedup: float = Field(
        1.0,
        gt=0.0,
        description="Minimum of times the teacher's throughput through Triton (largest concurrency), for the lower bound.",
    )
    p99_ms: float | None = Field(
        None,
        gt=0.0,
        description="Longest p99 (its upper bound) through Triton at 'at_concurrency', in milliseconds; empty is no limit.",
    )
    at_concurrency: PositiveInt = Field(16, description="Concurrency at which p99_ms is read.")
    max_size_mb: float | None = Field(
        None, gt=0.0, description="Largest file in megabytes (10^6 bytes); empty is no limit."
    )
    equal_speed: float = Field(
        0.1,
        ge=0.0,
        lt=1.0,
        description="Share by which a candidate's throughput may lie below the fastest one's and still count as equally fast: "
        "among those the smaller file wins.",
    )


class Promote(Section):
    """How the winner goes live."""

    load_timeout_s: float = Field(
        60.0, gt=0.0, description="Longest that Triton may take to load a candidate, in seconds."
    )
    golden_images: PositiveInt = Field(32, description="Validation images whose answers the served model must repeat.")
    preflight_timeout_s: float = Field(
        60.0,
        gt=0.0,
        description="Longest that a candidate may take to load and answer outside Triton, in a process of its own.",
    )
    probes: PositiveInt = Field(
        100,
        description="Requests of one row each that compare a candidate with the served version before it goes live.",
    )
    max_p99_ms: float | None = Field(
        None, gt=0.0, description="Longest p99 of such requests, in milliseconds; empty is no limit of its own."
    )
    max_p99_ratio: float = Field(
        10.0,
        gt=0.0,
        description="Times the p99 of the version before, at most; what stays below 20 ms is never too slow by this.",
    )
    max_error_rate: Fraction = Field(
        0.01, description="Largest share of requests that the new version may fail while it is observed."
    )
    max_drift: Fraction = Field(
        0.2,
        description="Largest share of golden predictions that may move to other classes against the version before (total variation).",
    )
    observe_s: float = Field(
        5.0, ge=0.0, description="How long a version that went live is observed before it becomes champion, in seconds."
    )
    observe_requests: PositiveInt | None = Field(
        None, description="Observation ends earlier once so many requests were answered; empty is by time alone."
    )
    live_test: Literal["none", "canary", "shadow"] = Field(
        "none",
        description="On live requests, before it goes live, a candidate is a canary, which answers, a shadow, which gets copies, or none.",
    )
    live_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.05, description="Share of the live requests that a canary or shadow gets."
    )
    live_requests: PositiveInt = Field(200, description="Fewest live requests after which a candidate can pass.")
    live_s: float = Field(
        600.0, gt=0.0, description="Longest test on live requests, in seconds; then it is withdrawn as undecided."
    )
    live_alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        0.01,
        description="Largest chance that one that breaks a limit passes, and that one that keeps all is withdrawn for breaking one.",
    )
    live_max_other: Fraction = Field(
        0.1, description="Largest share of the rows of live requests that a candidate may put into another class."
    )
    live_max_latency_ratio: float = Field(
        2.0,
        gt=0.0,
        description="Times the champion's latency that a candidate's may be in the median of live requests.",
    )
    live_timeout_ms: float = Field(
        1000.0, gt=0.0, description="After which the champion answers what a canary has not, and the canary has failed."
    )
    approval: bool = Field(
        False,
        description="Whether a person must approve in Airflow, with the evidence in view, before anything goes live.",
    )


class VerifyServed(Section):
    """The last look at the live endpoint."""

    images: PositiveInt = Field(500, description="Test images sent to the live endpoint.")


class Settings(Section):
    """Everything that one pipeline run is told."""

    seed: int = Field(17, ge=0, description="Seed of weights, shuffling, augmentation and calibration.")
    data: Data = Field(Data(), description=Data.__doc__ or "")
    datasets: dict[str, DatasetSplit] = Field(default_factory=dict, description="The data sets that dvc.yaml prepares.")
    expectations: Expectations = Field(Expectations(), description=Expectations.__doc__ or "")
    distributed: Distributed = Field(Distributed(), description=Distributed.__doc__ or "")
    train: Train = Field(Train(), description=Train.__doc__ or "")
    distill: Distill = Field(Distill(), description=Distill.__doc__ or "")
    prune: Prune = Field(Prune(), description=Prune.__doc__ or "")
    quantize: Quantize = Field(Quantize(), description=Quantize.__doc__ or "")
    export_onnx: ExportOnnx = Field(ExportOnnx(), description=ExportOnnx.__doc__ or "")
    build_tensorrt: BuildTensorrt = Field(BuildTensorrt(), description=BuildTensorrt.__doc__ or "")
    serving: Serving = Field(Serving(), description=Serving.__doc__ or "")
    evaluate: Evaluate = Field(Evaluate(), description=Evaluate.__doc__ or "")
    budget: Budget = Field(Budget(), description=Budget.__doc__ or "")
    promote: Promote = Field(Promote(), description=Promote.__doc__ or "")
    verify_served: VerifyServed = Field(VerifyServed(), description=VerifyServed.__doc__ or "")

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        """Settings that contradict each other, each named with its cure."""
        problems: list[str] = []
        if self.datasets and self.data.dataset not in self.datasets:
            problems.append(
                f"data.dataset is {self.data.dataset!r}, which is not under 'datasets': "
                f"{', '.join(self.datasets)}{near_miss(self.data.dataset, self.datasets)}"
            )
        if self.budget.p99_ms is not None and self.budget.at_concurrency not in self.evaluate.concurrency:
            problems.append(
                f"budget.at_concurrency is {self.budget.at_concurrency}, which evaluate.concurrency "
                f"{list(self.evaluate.concurrency)} does not measure: add it there or choose one of them"
            )
        if "int8_tensorrt" in self.build_tensorrt.candidates and "tensorrt" not in self.quantize.targets:
            problems.append(
                "build_tensorrt.candidates names int8_tensorrt, but quantize.targets has no 'tensorrt': "
                "add it there or drop the candidate"
            )
        for candidate in self.build_tensorrt.candidates:
            if candidate not in graph.FOR_TENSORRT:
                problems.append(
                    f"build_tensorrt.candidates names {candidate!r}, which is not exported for TensorRT; these are: "
                    f"{', '.join(graph.FOR_TENSORRT)}{near_miss(candidate, graph.FOR_TENSORRT)}"
                )
        if self.prune.tolerated_drop is not None and self.prune.pruner.name != "channel":
            problems.append(
                f"prune.tolerated_drop is {self.prune.tolerated_drop}, which limits the pruner 'channel', but "
                f"prune.pruner.name is {self.prune.pruner.name!r}: take tolerated_drop out or put that pruner into prune.then"
            )
        problems += self.serving.contradictions()
        for name, kind, component in self.components():
            try:
                components.check_name(kind, component.name)
            except SettingsError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("\n  - ".join(problems))
        return self

    def components(self) -> Iterator[tuple[str, str, Component]]:
        """Yield (dotted setting, kind, component) for every component that the settings name."""
        yield "train.model", "models", self.train.model
        yield "distill.model", "models", self.distill.model
        yield "distill.loss", "losses", self.distill.loss
        yield "prune.pruner", "pruners", self.prune.pruner
        for place, pruner in enumerate(self.prune.then):
            yield f"prune.then.{place}", "pruners", pruner
        yield "prune.loss", "losses", self.prune.loss
        yield "quantize.quantizer", "quantizers", self.quantize.quantizer
        yield "quantize.loss", "losses", self.quantize.loss

    def check_arguments(self, sections: Iterable[str]) -> None:
        """Check the arguments of every component in `sections`; makes none. Raises `SettingsError` naming the setting."""
        for setting, kind, component in self.components():
            if setting.partition(".")[0] in sections:
                given = components.GIVEN.get(kind, {})
                components.check(kind, component.name, {**given, **component.arguments}, setting)


def recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in (workspace.root() / "recipes").glob("*.yaml"))


def load(recipe: str | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings: params.yaml, overlaid by `recipe`, then by `overrides` (dotted key -> value).

    Raises `SettingsError` that names every problem at once.
    """
    tree = _overlay(_defaults(), _read_yaml(workspace.root() / "params.yaml"))
    if recipe:
        if recipe not in recipes():
            raise SettingsError(
                f"there is no recipe {recipe!r}; recipes/ has: {', '.join(recipes())}{near_miss(recipe, recipes())}"
            )
        tree = _overlay(
            tree, _pinned(_read_yaml(workspace.root() / "recipes" / f"{recipe}.yaml"), f"recipes/{recipe}.yaml")
        )
    above: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        above = _overlay(above, _pinned(branch, key))
    return parse(_overlay(tree, above))


def parse(tree: Mapping[str, Any]) -> Settings:
    """Return `tree` as settings. Raises `SettingsError` that names every problem at once."""
    try:  # as JSON, because there strict means "no conversions" and yet a list may stand for a tuple
        return Settings.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError(
            "\n".join(
                [
                    "the settings do not hold (docs/settings.md lists them all):",
                    *(f"  - {text}" for text in _explain(error)),
                ]
            )
        ) from error


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Turn ``("train.fit.epochs=3",)`` into ``{"train.fit.epochs": 3}``; values are YAML. Raises `SettingsError`."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set takes key=value, for example train.fit.epochs=3; got {pair!r}")
        try:
            overrides[key.strip()] = yaml12.read(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {pair}: the value is not YAML: {error}") from error
    return overrides


def fields(section: type[Section] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic FieldInfo) of every leaf setting, in the order in which they are declared."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml12.read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"cannot read {path}: {error.strerror}; run from the repository or set FLYWEIGHT_ROOT"
        ) from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if tree is not None and not isinstance(tree, dict):
        raise SettingsError(f"{path} must hold sections of settings, not a {type(tree).__name__}")
    return tree or {}


def _pinned(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """Refuse an overlay of what DVC pins: the bytes on disk would no longer be what the settings say."""
    if "datasets" in tree:
        raise SettingsError(f"{source}: 'datasets' is pinned by dvc.lock; edit params.yaml and run `dvc repro` instead")
    return tree


def _defaults() -> dict[str, Any]:
    """The schema's own defaults as a tree, so that one argument of a default component can be changed alone."""
    return Settings.model_construct().model_dump(mode="json")


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` into `below`. A component that changes its name drops the arguments of the old one."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _renames(old, value):
            merged[key] = _overlay(old, value)
        else:
            merged[key] = value
    return merged


def _renames(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in old and "name" in new and old["name"] != new["name"]


def _explain(error: ValidationError) -> list[str]:
    """Each setting that does not hold, as a sentence: setting, value, what is allowed, near miss."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        path = _real_path(problem["loc"])
        where = ".".join(path)
        if not path:
            sentences[problem["msg"]] = problem["msg"].removeprefix("Value error, ")
        elif where not in sentences:
            sentences[where] = _sentence(path, problem)
        elif problem["type"] != "too_short":  # the branches of a union each complain about the same value
            sentences[where] += f", or: {problem['msg']}"
    return list(sentences.values())


def _sentence(path: list[str], problem: Any) -> str:
    """One problem that pydantic found, with its cure."""
    where, value, message = ".".join(path), problem["input"], problem["msg"]
    if problem["type"] == "extra_forbidden":
        key, known = path[-1], list(_section_at(path[:-1]).model_fields)
        place = f"{'.'.join(path[:-1])} has" if path[:-1] else "the settings have"
        return f"{where}: {place} no {key!r}; allowed: {', '.join(known)}{_near_setting(where, key, known)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "model_type":
        inside = list(_section_at(path).model_fields)
        return f"{where} is {value!r}: it holds settings of its own, such as {where}.{inside[0]}"
    if problem["type"] == "literal_error":
        message += near_miss(str(value), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return f"{where} is {value!r}: {message}"


def _near_setting(where: str, key: str, known: list[str]) -> str:
    """The near miss among `known`, or else a setting elsewhere that ends as `where` does."""
    elsewhere = [setting for setting, _ in fields() if setting.endswith(f".{where}")]
    return near_miss(key, known) or (f"; did you mean {elsewhere[0]!r}?" if elsewhere else "")


def _section_at(path: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = Settings
    for part in path:
        annotation = section.model_fields[part].annotation if part in section.model_fields else DatasetSplit
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else section
    return section


def _real_path(location: tuple[int | str, ...]) -> list[str]:
    """`location` without the names of union branches that pydantic puts behind a leaf."""
    path: list[str] = []
    section: Any = Settings
    for part in map(str, location):
        path.append(part)
        fields = getattr(section, "model_fields", None)
        if fields is None or part not in fields:
            if section == dict[str, DatasetSplit]:
                section = DatasetSplit
                continue
            break
        section = fields[part].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)) and section != dict[str, DatasetSplit]:
            break
    return path
