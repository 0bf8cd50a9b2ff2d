"""Every setting of one pipeline run: the typed schema behind params.yaml, recipes and `--set`.

The sections are in the files beside this one. Values of another type are refused: neither "3" nor true is a number.
Nothing heavy is imported: a DAG file may import this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field, model_validator

from pipeline import components, graph
from pipeline.errors import SettingsError, near_miss
from pipeline.settings.base import Component, Section
from pipeline.settings.compression import Prune, Quantize
from pipeline.settings.data import Data, DatasetSplit, Expectations
from pipeline.settings.export import BuildTensorrt, ExportOnnx
from pipeline.settings.gate import Budget, Evaluate
from pipeline.settings.serving import Promote, Serving, VerifyServed
from pipeline.settings.training import Distill, Distributed, Train


class Settings(Section):
    """Everything that configures one pipeline run."""

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


def fields(section: type[Section] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic FieldInfo) of every leaf setting, in the order in which they are declared."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info
