"""Settings of serving: how Triton serves the proxy and how a version goes live."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.base import Fraction, PositiveInt, Section


class Serving(Section):
    """How Triton serves the proxy."""

    model: str = Field(
        "proxy", pattern=r"^[a-z][a-z0-9_]{0,63}$", description="Model name in Triton and in the MLflow registry."
    )
    backend: Literal["python", "onnxruntime", "tensorrt"] = Field(
        "python",
        description="python is Flyweight's model.py around ONNX Runtime, for every Triton; the others are Triton's own.",
    )
    max_batch_size: PositiveInt = Field(64, description="Maximum number of rows that Triton puts into one batch.")
    instances: PositiveInt = Field(2, description="Instances of the model that answer side by side, per GPU if any.")
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="GPUs that hold the instances, by number; none is the CPU. For the native backends."
    )
    threads: PositiveInt = Field(
        1, description="Threads per instance; instances x threads should not exceed the cores."
    )
    queue_delay_us: int = Field(
        0, ge=0, description="Maximum time that a request waits for others to fill its batch, in microseconds."
    )
    max_queue_size: int = Field(
        0, ge=0, description="Maximum number of waiting requests; further ones are refused. 0 is no limit."
    )
    queue_timeout_ms: float = Field(
        0.0,
        ge=0.0,
        description="Maximum average time that requests may wait before some are refused, in ms. 0 is no limit.",
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
        description="What an instance takes of FLYWEIGHT_TRITON_UNITS while it answers (Triton's rate limiter); 0 takes nothing.",
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


class Promote(Section):
    """How the winner goes live."""

    load_timeout_s: float = Field(
        60.0, gt=0.0, description="Maximum time that Triton may take to load a candidate, in seconds."
    )
    golden_images: PositiveInt = Field(32, description="Validation images whose answers the served model must repeat.")
    preflight_timeout_s: float = Field(
        60.0,
        gt=0.0,
        description="Maximum time that a candidate may take to load and answer outside Triton, in a process of its own.",
    )
    probes: PositiveInt = Field(
        100,
        description="Requests of one row each that compare a candidate with the served version before it goes live.",
    )
    max_p99_ms: float | None = Field(
        None, gt=0.0, description="Maximum p99 of such requests, in milliseconds; empty is no limit of its own."
    )
    max_p99_ratio: float = Field(
        10.0,
        gt=0.0,
        description="Times the p99 of the version before, at most; what stays below 20 ms is never too slow by this.",
    )
    max_error_rate: Fraction = Field(
        0.01, description="Maximum share of requests that the new version may fail while it is observed."
    )
    max_drift: Fraction = Field(
        0.2,
        description="Maximum share of golden predictions that may move to other classes against the version before (total variation).",
    )
    observe_s: float = Field(
        5.0, ge=0.0, description="How long a version that went live is observed before it becomes champion, in seconds."
    )
    observe_requests: PositiveInt | None = Field(
        None, description="Observation ends earlier once so many requests were answered; empty is by time alone."
    )
    live_test: Literal["none", "canary", "shadow"] = Field(
        "none",
        description="Before going live, on live requests, a candidate is a canary, which answers; a shadow, which gets copies, or none.",
    )
    live_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.05, description="Share of the live requests that a canary or shadow gets."
    )
    live_requests: PositiveInt = Field(
        200, description="Minimum number of live requests after which a candidate can pass."
    )
    live_s: float = Field(
        600.0,
        gt=0.0,
        description="Maximum duration of a test on live requests, in seconds; then it is withdrawn as undecided.",
    )
    live_alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        0.01,
        description="Maximum probability that one that breaks a limit passes, and that one that keeps all is withdrawn for breaking one.",
    )
    live_max_other: Fraction = Field(
        0.1, description="Maximum share of the rows of live requests that a candidate may put into another class."
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
    """The last check of the live endpoint."""

    images: PositiveInt = Field(500, description="Test images sent to the live endpoint.")
