"""Settings of the gate: what is measured, and what the user can afford."""

from __future__ import annotations

from pydantic import Field

from pipeline.settings.base import PositiveInt, Section


class Evaluate(Section):
    """What is measured before the gate."""

    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of every confidence interval.")
    bootstrap: PositiveInt = Field(2000, description="Resamples of each bootstrap interval.")
    offline_batches: tuple[PositiveInt, ...] = Field(
        (1, 64), min_length=1, description="Batch sizes at which ONNX Runtime is timed on one thread."
    )
    offline_seconds: float = Field(1.0, gt=0.0, description="Minimum duration of each offline timing, in seconds.")
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
        description="Maximum drop of test accuracy against the teacher; 0.01 is one point. It bounds the upper confidence limit.",
    )
    size_ratio: float = Field(1.0, gt=0.0, description="Minimum ratio of the teacher's file size to the proxy's.")
    speedup: float = Field(
        1.0,
        gt=0.0,
        description="Minimum ratio to the teacher's images/s offline (largest batch); the lower bound is held to it.",
    )
    served_speedup: float = Field(
        1.0,
        gt=0.0,
        description="Minimum ratio to the teacher's throughput through Triton (largest concurrency); the lower bound is held to it.",
    )
    p99_ms: float | None = Field(
        None,
        gt=0.0,
        description="Maximum p99 through Triton at 'at_concurrency', in milliseconds; the upper bound is held to it; empty is no limit.",
    )
    at_concurrency: PositiveInt = Field(16, description="Concurrency at which p99_ms is read.")
    max_size_mb: float | None = Field(
        None, gt=0.0, description="Maximum file size in megabytes (10^6 bytes); empty is no limit."
    )
    equal_speed: float = Field(
        0.1,
        ge=0.0,
        lt=1.0,
        description="Share by which a candidate's throughput may lie below the fastest one's and still count as equally fast: "
        "among those the smaller file wins.",
    )
