"""What a call to Triton consists of, whichever client makes it: tensors, the answer, its parts, and pauses between tries."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from pipeline.serving.triton import server
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.shared_memory import Region

KEEP_ALIVE = triton.KeepAliveOptions(keepalive_time_ms=3 * server.PING_MS, keepalive_timeout_ms=10_000)
"""While a call is under way the server is asked every 30 s whether it is there; a machine that has vanished sends no end."""
_FIRST_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    outputs: Mapping[str, NDArray]
    version: int
    """The version that answered."""


@dataclass(frozen=True)
class Served:
    """What one version has answered since it was loaded, by Triton's own count."""

    answered: int
    """Requests."""
    failed: int
    seconds: float
    """From arrival to answer, summed over the answered requests."""


def tensors(inputs: Mapping[str, NDArray], region: Region | None = None) -> list[Any]:
    """Return `inputs` as tritonclient's tensors; what no tensor of Triton can hold is a `TypeError`."""
    made = []
    for name, array in inputs.items():
        datatype = np_to_triton_dtype(array.dtype)
        if datatype is None:
            raise TypeError(f"input {name!r} is an array of {array.dtype}, which Triton does not know")
        made.append(triton.InferInput(name, array.shape, datatype))
    if region is None:
        for tensor, array in zip(made, inputs.values(), strict=True):
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
        return made
    for tensor, (name, size, start) in zip(made, region.place(inputs), strict=True):
        tensor.set_shared_memory(name, size, offset=start)
    return made


def answer(result: Any) -> Answer:
    """Return what tritonclient brought back."""
    response = result.get_response()
    outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
    return Answer(outputs, int(response.model_version))


def parts(inputs: Mapping[str, NDArray], rows: int) -> Iterator[Mapping[str, NDArray]]:
    """Yield `inputs` in parts of at most `rows` rows."""
    for start in range(0, len(next(iter(inputs.values()))), rows):
        yield {name: array[start : start + rows] for name, array in inputs.items()}


def joined(model: str, answers: Sequence[Answer]) -> Answer:
    """Return several answers of one version as one."""
    versions = {answer.version for answer in answers}
    if len(versions) != 1:
        raise TritonError(
            f"{model} changed from version {min(versions)} to {max(versions)} under way: ask again, or name a version",
            "ABORTED",
        )
    names = answers[0].outputs
    return Answer(
        {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in names}, versions.pop()
    )


def pauses(retries: int) -> Iterator[float | None]:
    """Yield how long to wait after each try, at random up to a bound that doubles; None after the last."""
    for attempt in range(retries):
        yield random.uniform(0.5, 1.0) * _FIRST_PAUSE_SECONDS * 2**attempt  # noqa: S311
    yield None
