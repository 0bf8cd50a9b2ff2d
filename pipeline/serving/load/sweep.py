"""Loads one after another, each heavier: the curve of latency against throughput, and its knee."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FlyweightError, near_miss
from pipeline.machine import places
from pipeline.progress.events import report
from pipeline.serving.load.knee import knee
from pipeline.serving.load.measure import run
from pipeline.serving.load.processes import WINDOWS, Watch
from pipeline.serving.load.requests import zeros
from pipeline.serving.load.result import Closed, LoadResult, Open
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError

LEVELS = (1, 2, 4, 8, 16, 32, 64)
"""Requests in flight of a sweep that names no others."""
_PATIENCE = 2 * WINDOWS
_WARMUP_SECONDS = 1.0
_SILENT = {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
Measure: TypeAlias = Callable[[Closed | Open, Watch], LoadResult]


@dataclass(frozen=True)
class Sweep:
    """What was measured, in the order of the loads."""

    results: tuple[LoadResult, ...]
    knee: int | None
    """Place of the knee among them."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data; what is infinite, as the latency of nothing, is null."""
        return {"loads": [finite(one.to_json()) for one in self.results], "knee": self.knee}


def sweep(loads: Sequence[Closed | Open], measure: Measure) -> Sweep:
    """Measure one load after another, and say how far it is."""
    results: list[LoadResult] = []
    for place, one in enumerate(loads):

        def watch(share: float, place: int = place) -> None:
            report("load", done=place + min(share, 0.99), total=len(loads))

        results.append(measure(one, watch))
        found = results[-1]
        report("load", done=place + 1, total=len(loads), throughput=found.throughput, p99_ms=found.p99_ms)
    return Sweep(tuple(results), knee([(one.throughput, one.mean_ms) for one in results]))


def measured(model: str, inputs: Mapping[str, NDArray], seconds: float, url: str) -> Measure:
    """Return what puts one load on a served model, with a warm-up and patience for an unstable measurement."""

    def measure(one: Closed | Open, watch: Watch) -> LoadResult:
        return run(model, "", inputs, one, seconds, url, _WARMUP_SECONDS, _PATIENCE, watch=watch)

    return measure


def served(model: str, url: str | None = None) -> Any:
    """Return the metadata of a model that is served.

    Raises `FlyweightError` for one that is not, naming those that are, and `ConnectionError` where no server answers.
    """
    address = url or places.triton_grpc()
    with Client(address) as client:
        try:
            return client.metadata(model)
        except TritonError as error:
            if error.status in _SILENT and not client.live():
                raise ConnectionError(
                    f"no Triton answers at {address}: start it with `flyweight up triton`, or say where it is with --url"
                ) from error
            if error.status not in {"NOT_FOUND", *_SILENT}:
                raise
            there = _ready(client)
            raise FlyweightError(
                f"Triton at {address} does not serve {model!r}; it serves: {', '.join(there) or 'nothing'}"
                f"{near_miss(model, there)}"
            ) from error


def inputs_of(metadata: Any, images: NDArray[np.uint8] | None) -> dict[str, NDArray]:
    """Return what to send to a model: `images` (M, C, H, W), or zeros of the served shape for None.

    Raises `FlyweightError` where the model does not take such images.
    """
    if images is None:
        return zeros(metadata)
    shapes = [list(tensor.shape) for tensor in metadata.inputs]
    wanted = [-1, *images.shape[1:]]
    if (
        len(shapes) != 1
        or len(shapes[0]) != 4
        or any(a >= 0 and a != b for a, b in zip(shapes[0], wanted, strict=True))
    ):
        raise FlyweightError(
            f"{metadata.name} takes {' and '.join(map(str, shapes))} (-1 is any length), and the data set's images are "
            f"{list(images.shape[1:])}: leave --images out to send zeros, or choose another data set with "
            f"--set data.dataset=NAME"
        )
    return {metadata.inputs[0].name: images}


def write_json(found: Sweep, file: Path) -> None:
    """Write all that was measured."""
    file.write_text(json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _ready(client: Client) -> list[str]:
    try:
        return sorted(name for name, versions in client.index().items() if "READY" in versions.values())
    except TritonError:  # a server whose key we do not have
        return []


def finite(value: Any) -> Any:
    """Return plain data with null for what is infinite, as JSON has no word for it."""
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
