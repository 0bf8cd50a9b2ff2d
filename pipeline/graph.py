"""The stages and what each takes from which: plain data. Imports nothing of Flyweight.

The Airflow DAG, `flyweight all`, the docs and the report are all loops over `STAGES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """One step from data to a served proxy.

    The function is ``pipeline.stages.<name>.<name>`` and is called as
    ``fn(settings.<section>, **inputs, **shared settings, out=directory)``.
    """

    name: str
    help: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Parameter name -> the stage whose output directory it is."""
    after: tuple[str, ...] = ()
    """Stages that must have passed first although nothing of theirs is read."""
    section: str = ""
    """The section of the settings that it takes; the stage's own name if empty."""
    shared: tuple[str, ...] = ()
    """Further settings that it takes, each as a keyword argument of the same name."""
    pool: str = "default_pool"
    retries: int = 1
    timeout_minutes: int = 30
    reusable: bool = True
    """Whether a FINISHED run with the same fingerprint may stand in for a new one."""

    @property
    def settings(self) -> tuple[str, ...]:
        """All sections of the settings that its fingerprint covers."""
        return (self.section or self.name, *self.shared)

    @property
    def upstream(self) -> tuple[str, ...]:
        """Every stage that must be done before this one, without repeats."""
        return tuple(dict.fromkeys((*self.inputs.values(), *self.after)))


_ALL = (
    Stage(
        "prepare_data",
        "Fetch and prepare the data set with DVC.",
        section="data",
        retries=2,
        reusable=False,
    ),
    Stage(
        "validate",
        "Hold the data to its expectations with Great Expectations.",
        inputs={"data": "prepare_data"},
        section="expectations",
        retries=1,
    ),
    Stage(
        "train",
        "Train the teacher on all processes.",
        inputs={"data": "prepare_data"},
        after=("validate",),
        shared=("distributed", "seed"),
        pool="training",
        retries=2,
        timeout_minutes=24 * 60,
    ),
    Stage(
        "distill",
        "Train the narrow student to answer as the teacher does.",
        inputs={"data": "prepare_data", "teacher": "train"},
        shared=("distributed", "seed"),
        pool="training",
        retries=2,
        timeout_minutes=24 * 60,
    ),
    Stage(
        "prune",
        "Make the student smaller, by one method or several, and let it recover.",
        inputs={"data": "prepare_data", "teacher": "train", "student": "distill"},
        shared=("distributed", "seed"),
        pool="training",
        retries=2,
        timeout_minutes=24 * 60,
    ),
    Stage(
        "quantize",
        "Write the pruned student in fewer bits, calibrated on training images.",
        inputs={"data": "prepare_data", "teacher": "train", "pruned": "prune"},
        shared=("distributed", "seed"),
        pool="training",
        retries=2,
        timeout_minutes=24 * 60,
    ),
    Stage(
        "export_onnx",
        "Write every candidate as ONNX and measure its parity with PyTorch.",
        inputs={
            "data": "prepare_data",
            "teacher": "train",
            "student": "distill",
            "pruned": "prune",
            "quantized": "quantize",
        },
        timeout_minutes=60,
    ),
    Stage(
        "build_tensorrt",
        "Build TensorRT engines where a builder is at hand.",
        inputs={"data": "prepare_data", "candidates": "export_onnx"},
        shared=("serving",),
        timeout_minutes=120,
    ),
    Stage(
        "evaluate",
        "Measure every candidate and hold it to the budget: the gate.",
        inputs={
            "data": "prepare_data",
            "teacher": "train",
            "student": "distill",
            "pruned": "prune",
            "candidates": "export_onnx",
            "engines": "build_tensorrt",
        },
        shared=("budget", "serving", "seed"),
        pool="training",
        timeout_minutes=120,
    ),
    Stage(
        "promote",
        "Put the winner into Triton's repository without dropping a request.",
        inputs={"candidates": "export_onnx", "evaluation": "evaluate"},
        shared=("serving",),
        retries=2,
        reusable=False,
    ),
    Stage(
        "verify_served",
        "Ask the live endpoint and compare it with what was promoted.",
        inputs={"data": "prepare_data", "candidates": "export_onnx", "promotion": "promote"},
        shared=("serving",),
        reusable=False,
    ),
)

FLOATS: Mapping[str, str] = {"teacher": "train", "student": "distill", "pruned": "prune"}
"""Float candidate -> the stage that makes it, each from the one before it."""
FOR_TENSORRT = (*FLOATS, "int8_tensorrt")
"""Candidates of which an engine can be built."""

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ALL}
"""Every stage by name, in an order in which they can run one after another."""
