"""Golden answers: inputs with the outputs that a served model must repeat, and the words for what is different.

They lie beside each version's files, so that a version can be held to them whenever it is loaded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.errors import PromotionError
from pipeline.serving.triton.control import READY, Control, states
from pipeline.serving.triton.repository import ATTESTED

GOLDEN_FILE = "golden.safetensors"
TOLERANCE = 1e-3
"""Served outputs may differ from those of the same file in another process by so much, absolutely or as a share: formed
batches of another size may add in another order."""


@dataclass(frozen=True)
class Golden:
    """Inputs with the answers that a served model must repeat; at most a full batch."""

    inputs: Mapping[str, NDArray]
    outputs: Mapping[str, NDArray]
    batched: bool = True
    """Whether the first axis of every array counts requests; else the whole is one request."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()))) if self.batched else 1

    def row(self, index: int) -> Mapping[str, NDArray]:
        """Return one request of its inputs."""
        if not self.batched:
            return self.inputs
        return {name: array[index : index + 1] for name, array in self.inputs.items()}


def save_golden(path: Path, golden: Golden) -> None:
    """Write `golden` to a safetensors file."""
    tensors = {f"input:{name}": np.ascontiguousarray(array) for name, array in golden.inputs.items()}
    tensors |= {f"output:{name}": np.ascontiguousarray(array) for name, array in golden.outputs.items()}
    if not golden.batched:
        tensors["unbatched"] = np.ones(1, np.uint8)
    save_file(tensors, path)


def load_golden(path: Path) -> Golden:
    """Return what `save_golden` wrote. Raises `PromotionError`."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PromotionError(
            f"{path} holds no golden answers ({error}): promote that version again with `flyweight promote VERSION`"
        ) from error
    found: dict[str, dict[str, NDArray]] = {"input": {}, "output": {}}
    for key, array in tensors.items():
        kind, _, name = key.partition(":")
        if kind in found:
            found[kind][name] = array
    return Golden(found["input"], found["output"], "unbatched" not in tensors)


def trouble(control: Control, model: str, version: int, sha256: str | None, golden: Golden) -> str | None:
    """Return what is wrong with what unpinned requests to `model` get, or None. Raises `TritonError`.

    A good answer to a load is no proof: so the index, the version that answers, the hash that the running model attests
    and its answers are each looked at. `sha256` is None for a backend that cannot attest.
    """
    state = states(control, model).get(version)
    if state != READY:
        return f"version {version} is {state or 'not loaded'}, not READY"
    answer = control.infer(model, golden.inputs, attest=True)
    if answer.version != version:
        return f"unpinned requests get version {answer.version}, not {version}"
    if sha256 is not None:
        attested = {row.tobytes().hex() for row in answer.outputs[ATTESTED].reshape(-1, 32)}
        if attested != {sha256}:
            return f"the running model attests SHA-256 {', '.join(sorted(attested))}, not {sha256}"
    return difference(golden.outputs, answer.outputs)


def difference(expected: Mapping[str, NDArray], served: Mapping[str, NDArray]) -> str | None:
    """Return how `served` outputs differ from `expected` beyond `TOLERANCE`, in words, or None."""
    for name, wanted in expected.items():
        got = served.get(name)
        if got is not None and (*got.shape, 1) == wanted.shape:  # without the axis that Triton gives to bare numbers
            got = got.reshape(wanted.shape)
        if got is None or got.shape != wanted.shape:
            return f"output {name!r} has shape {None if got is None else got.shape}, not {wanted.shape}"
        if not np.isfinite(got.astype(np.float64)).all():
            return f"output {name!r} holds values that are not finite"
        wrong = ~np.isclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        if wrong.any():
            rows = int(wrong.reshape(len(wrong), -1).any(axis=1).sum())
            largest = float(np.abs(got.astype(np.float64) - wanted).max())
            return (
                f"{rows} of {len(wanted)} golden answers differ from the recorded ones; "
                f"{name!r} by up to {largest:.3g}, allowed is {TOLERANCE:g}"
            )
    return None
