"""Any ONNX file as something to promote: its spec read from the graph, inputs made up to hold it to its own answers.

Whether its first axes are a batch axis is not what their names say but what the model does: rows that are answered
together must be answered as they are alone. Otherwise Triton may not put requests together, and the model is served
without a batch axis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError, PromotionError
from pipeline.files import sha256
from pipeline.models.onnx_spec import read_spec
from pipeline.models.spec import ModelSpec, TensorSpec
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.triton.golden import Golden
from pipeline.serving.triton.repository import Artifact

ROWS = 5
"""Rows of the batch that shows whether a model has a batch axis."""
_MIXING = 0.05
"""Rows answered together may differ by this share of the largest value: 8-bit ranges found over a batch do no more."""
_UNKNOWN = 3
"""Length of an axis, other than the batch, that the graph leaves open."""


def from_file(file: Path, labels: Sequence[str] = (), inputs: Mapping[str, NDArray] | None = None) -> Artifact:
    """Return the ONNX `file` as an artifact, its spec read from the graph and its batch axis tried out.

    Args:
        file: the model.
        labels: names of the classes in its first output, if that is what it is.
        inputs: some that it takes, by name and as the graph shapes them; made up if None.

    Raises:
        PromotionError: a tensor cannot be served, or the model does not take `inputs`.
        ModelError: ONNX Runtime cannot load it.
    """
    spec = read_spec(file)
    if spec.batched and not _rows_are_alone(file, inputs or made_up(spec, ROWS)):
        spec = _without_batch(spec)
    return Artifact(file, spec.model_copy(update={"labels": tuple(labels)}), sha256(file), candidate=file.stem)


def golden_answers(artifact: Artifact, inputs: Mapping[str, NDArray], threads: int = 1) -> Golden:
    """Return `inputs`, shaped as the graph has them, with what ONNX Runtime in this process answers.

    The result has the shapes that a client sees: what has no axis of its own has one of length 1 in Triton. Raises
    `PromotionError` where the model does not take `inputs`.
    """
    spec = artifact.spec
    with contextlib.closing(OnnxRunner(artifact.onnx, threads)) as runner:
        outputs = _answers(runner, inputs, artifact.onnx)
    return Golden(_as_seen(inputs, spec.inputs), _as_seen(outputs, spec.outputs), spec.batched)


def read_inputs(file: Path) -> dict[str, NDArray]:
    """Return the arrays of an ``.npz`` file, named as the graph names its inputs. Raises `PromotionError`."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError) as error:
        raise PromotionError(
            f"{file} holds no arrays: {error}. Write it with numpy.savez(file, input_name=array)"
        ) from error


def made_up(spec: ModelSpec, rows: int, seed: int = 0) -> dict[str, NDArray]:
    """Return inputs for `spec`: normal floats, any bytes, and ones and zeros for other integers, which may be indices."""
    generator = np.random.default_rng(seed)
    return {
        tensor.name: _values(generator, tensor.dtype, [*([rows] if spec.batched else []), *_lengths(tensor)])
        for tensor in spec.inputs
    }


def _rows_are_alone(file: Path, inputs: Mapping[str, NDArray]) -> bool:
    """Return whether a batch is answered as its rows are one by one."""
    rows = {len(array) if array.ndim else 0 for array in inputs.values()}
    with contextlib.closing(OnnxRunner(file)) as runner:
        together = _answers(runner, inputs, file)
        if len(rows) != 1 or any(len(np.atleast_1d(whole)) not in rows for whole in together.values()):
            return False
        for row in range(rows.pop()):
            alone = _answers(runner, {name: array[row : row + 1] for name, array in inputs.items()}, file)
            if not all(_alike(together[name][row : row + 1], alone[name]) for name in together):
                return False
        return True


def _alike(one: NDArray, other: NDArray) -> bool:
    if one.shape != other.shape:
        return False
    first, second = one.astype(np.float64), other.astype(np.float64)
    return bool(np.allclose(first, second, rtol=0, atol=_MIXING * max(np.abs(first).max(initial=0.0), 1e-6)))


def _without_batch(spec: ModelSpec) -> ModelSpec:
    """Return `spec` with the open axes in front as part of every shape."""
    opened = {
        kind: tuple(tensor.model_copy(update={"shape": (-1, *tensor.shape)}) for tensor in getattr(spec, kind))
        for kind in ("inputs", "outputs")
    }
    return spec.model_copy(update={**opened, "batched": False})


def _answers(runner: OnnxRunner, inputs: Mapping[str, NDArray], file: Path) -> dict[str, NDArray]:
    try:
        return dict(runner(inputs))
    except ModelError as error:
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
        raise PromotionError(
            f"{file} does not take these inputs ({shapes}): {error}. Give some that it takes with --golden FILE.npz"
        ) from error


def _as_seen(arrays: Mapping[str, NDArray], tensors: Iterable[TensorSpec]) -> dict[str, NDArray]:
    bare = {tensor.name for tensor in tensors if not tensor.shape}
    return {name: array[..., None] if name in bare else array for name, array in arrays.items()}


def _lengths(tensor: TensorSpec) -> list[int]:
    return [_UNKNOWN if length < 0 else length for length in tensor.shape]


def _values(generator: np.random.Generator, dtype: str, shape: list[int]) -> NDArray:
    if dtype.startswith("float"):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 256 if dtype == "uint8" else 2, shape).astype(dtype)
