"""How fast a runner answers, in this process: one function for PyTorch, ONNX Runtime, TensorRT and Triton alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import TURNS, typical
from pipeline.protocols import Runner
from pipeline.records.measures import Interval, Offline

_WARM_UP = 2


def time_runners(
    runners: Mapping[str, Runner],
    images: NDArray[np.uint8],
    batch: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    confidence: float = 0.95,
) -> dict[str, Offline]:
    """Time every runner on batches of `batch` images for at least `seconds` each.

    The runners take `TURNS` turns each, so that whatever else the machine does at the time hits all of them alike; every
    other round goes through them backwards, so that a machine that slows down steadily favours none. A turn's images per
    second come from its median call, which a single disturbed call does not move.

    Args:
        runners: name -> what takes ``{"image": (N, C, H, W) uint8}``.
        images: real ones, (M, C, H, W); taken again from the start where `batch` is more than M.
        batch: images per call.
        seconds: minimum time that each runner is timed for, its warm-up left out.
        clock: seconds, monotonic.
        confidence: level of the intervals.
    """
    inputs = {"image": np.ascontiguousarray(images[np.arange(batch) % len(images)])}
    for runner in runners.values():
        for _ in range(_WARM_UP):
            runner(inputs)
    turns: dict[str, list[list[float]]] = {name: [] for name in runners}
    for number in range(TURNS):
        for name in list(runners)[:: -1 if number % 2 else 1]:
            turns[name].append(_turn(runners[name], inputs, seconds / TURNS, clock))
    return {name: _summary(found, batch, confidence) for name, found in turns.items()}


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


def _summary(turns: Sequence[Sequence[float]], batch: int, confidence: float) -> Offline:
    times = np.concatenate([np.asarray(turn) for turn in turns])
    p50, p99 = np.percentile(times, [50, 99])
    speeds = tuple(float(batch / np.median(turn)) for turn in turns)
    speed = typical(speeds, confidence)
    return Offline(
        images_per_second=speed.value,
        interval=Interval(low=speed.low, high=speed.high),
        turns=speeds,
        p50_ms=float(1000 * p50),
        p99_ms=float(1000 * p99),
        calls=len(times),
    )
