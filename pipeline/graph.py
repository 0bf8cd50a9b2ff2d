"""The stages and what each takes from which: plain data. Imports nothing of Flyweight.

The Airflow DAG, `flyweight all`, the docs and the report are all loops over `STAGES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache


@dataclass(frozen=True)
class Stage:
    """One step from data to a served proxy.

    The function is ``pipeline.stages.<name>.<name>`` and is called as
    ``fn(settings.<section>, **inputs, **shared settings, out=directory)``.
    """

    name: str
    help: str
    group: str
    """The one of `GROUPS` that it belongs to."""
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
    may_skip: bool = False
    """Whether it may say that it cannot run here; what follows it runs all the same."""
    measures: bool = False
    """Whether it measures this machine, so that what another machine measured never stands in."""
    measures_with: tuple[str, ...] = ()
    """Arguments of its components with which it measures this machine, where they are set."""
    loads: tuple[str, ...] = ()
    """Python packages that it loads by a name which no import statement shows."""
    looks_for_damage: bool = False
    """Whether it is there to find damaged data: it looks at the files as they are. Other stages get only what is whole."""

    @property
    def settings(self) -> tuple[str, ...]:
        """All sections of the settings that its fingerprint covers."""
        return (self.section or self.name, *self.shared)

    @property
    def upstream(self) -> tuple[str, ...]:
        """Every stage that must be done before this one, without repeats."""
        return tuple(dict.fromkeys((*self.inputs.values(), *self.after)))


GROUPS: Mapping[str, str] = {
    "data": "Fetch the data set and hold it to its expectations.",
    "teach": "Train the teacher, then the student by it.",
    "compress": "Make the student smaller, and write every candidate for where it is to run.",
    "prove": "Measure every candidate and hold it to the budget.",
    "serve": "Put the winner into service and ask it.",
}
"""What the stages do together, in order: name -> one sentence. Airflow's graph shows each as a box."""

_ALL = (
    Stage(
        "prepare_data",
        "Fetch and prepare the data set with DVC.",
        group="data",
        section="data",
        retries=2,
        reusable=False,
    ),
    Stage(
        "validate",
        "Hold the data to its expectations with Great Expectations.",
        group="data",
        inputs={"data": "prepare_data"},
        section="expectations",
        retries=1,
        looks_for_damage=True,
    ),
    Stage(
        "train",
        "Train the teacher on all processes.",
        group="teach",
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
        group="teach",
        inputs={"data": "prepare_data", "teacher": "train"},
        shared=("distributed", "seed"),
        pool="training",
        retries=2,
        timeout_minutes=24 * 60,
    ),
    Stage(
        "prune",
        "Make the student smaller, by one method or several, and let it recover.",
        group="compress",
        inputs={"data": "prepare_data", "teacher": "train", "student": "distill"},
        shared=("distributed", "seed"),
        pool="training",
        retries=2,
        timeout_minutes=24 * 60,
        measures_with=("keep_latency",),
    ),
    Stage(
        "quantize",
        "Write the pruned student in fewer bits, calibrated on training images.",
        group="compress",
        inputs={"data": "prepare_data", "teacher": "train", "pruned": "prune"},
        shared=("distributed", "seed"),
        pool="training",
        retries=2,
        timeout_minutes=24 * 60,
        measures=True,
    ),
    Stage(
        "export_onnx",
        "Write every candidate as ONNX and measure its parity with PyTorch.",
        group="compress",
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
        group="compress",
        inputs={"data": "prepare_data", "candidates": "export_onnx"},
        shared=("serving",),
        timeout_minutes=120,
        may_skip=True,
        measures=True,
        loads=("tensorrt", "tensorrt_rtx_bindings"),
    ),
    Stage(
        "evaluate",
        "Measure every candidate and hold it to the budget: the gate.",
        group="prove",
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
        measures=True,
    ),
    Stage(
        "promote",
        "Put the winner into Triton's repository without dropping a request.",
        group="serve",
        inputs={"candidates": "export_onnx", "evaluation": "evaluate"},
        shared=("serving",),
        retries=2,
        reusable=False,
    ),
    Stage(
        "verify_served",
        "Ask the live endpoint and compare it with what was promoted.",
        group="serve",
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


def before(name: str) -> tuple[str, ...]:
    """Return the stages that must have passed just before `name`: `upstream` without what the others of it imply."""
    direct = STAGES[name].upstream
    return tuple(one for one in direct if not any(one in _above(other) for other in direct if other != one))


@cache
def _above(name: str) -> frozenset[str]:
    """Every stage that comes before `name`, however far."""
    return frozenset(found for one in STAGES[name].upstream for found in (one, *_above(one)))
