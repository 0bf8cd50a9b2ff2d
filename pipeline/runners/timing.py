"""How fast a runner answers, in this process: one function for PyTorch, ONNX Runtime, TensorRT and Triton alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.protocols import Runner
from pipeline.records.evaluation import Offline

ROUNDS = 5
"""Each timing is spread over so many rounds; in each round every runner has its turn."""
_WARM_UP = 2


def time_runners(
    runners: Mapping[str, Runner],
    images: NDArray[np.uint8],
    batch: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Offline]:
    """Time every runner on batches of `batch` images for at least `seconds` each.

    The runners take turns, round by round, so that whatever else the machine does at the time hits all of them alike.
    Images per second come from the median call, which a single disturbed call does not move.

    Args:
        runners: name -> what takes ``{"image": (N, C, H, W) uint8}``.
        images: real ones, (M, C, H, W); taken again from the start where `batch` is more than M.
        batch: images a call.
        seconds: least time that each runner is timed for, its warm-up left out.
        clock: seconds, monotonic.
    """
    inputs = {"image": np.ascontiguousarray(images[np.arange(batch) % len(images)])}
    for runner in runners.values():
        for _ in range(_WARM_UP):
            runner(inputs)
    calls: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, runner in runners.items():
            calls[name] += _turn(runner, inputs, seconds / ROUNDS, clock)
    return {name: _summary(np.array(times), batch) for name, times in calls.items()}


def _turn(runner: Runner, inputs: Mapping[str, NDArray], seconds: float, clock: Callable[[], float]) -> list[float]:
    """Call `runner` until `seconds` are over, at least once; the seconds of each call."""
    times: list[float] = []
    start = before = clock()
    while not times or before - start < seconds:
        runner(inputs)
        after = clock()
        times.append(after - before)
        before = after
    return times


def _summary(times: NDArray[np.float64], batch: int) -> Offline:
    p50, p99 = np.percentile(times, [50, 99])
    return Offline(
        images_per_second=float(batch / p50), p50_ms=float(1000 * p50), p99_ms=float(1000 * p99), calls=len(times)
    )
