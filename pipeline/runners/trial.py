"""Whether an exported file is the model that it was made from: it must run at every batch size and answer alike."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.export.widening import widened
from pipeline.models.checkpoint import Checkpoint
from pipeline.protocols import Runner
from pipeline.records.measures import Parity
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.parity import compare
from pipeline.runners.runner import TorchRunner

BATCHES = (1, 7, 64)
"""Batch sizes at which every graph must run."""


def try_onnx(file: Path, name: str, precision: str, checkpoint: Checkpoint, images: NDArray[np.uint8]) -> Parity:
    """Return how far the candidate `name` in the ONNX `file` is from `checkpoint` in PyTorch. Raises `ModelError`."""
    with tempfile.TemporaryDirectory() as scratch:
        runner = OnnxRunner(_runnable(file, precision, Path(scratch)))
    return try_runner(runner, name, checkpoint, images, BATCHES)


def try_runner(
    runner: Runner,
    name: str,
    checkpoint: Checkpoint,
    images: NDArray[np.uint8],
    batches: Sequence[int],
    batch: int = 64,
) -> Parity:
    """Run `runner` at all sizes `batches`, compare it with PyTorch in batches of `batch`, close it. Raises `ModelError`."""
    with contextlib.closing(runner), contextlib.closing(TorchRunner(checkpoint)) as reference:
        try_batches(runner, name, images, batches)
        return compare(runner, reference, images, batch)


def try_batches(runner: Runner, name: str, images: NDArray[np.uint8], batches: Sequence[int]) -> None:
    """Raise `ModelError` unless the graph takes every batch size, in whatever order."""
    for batch in batches:
        inputs = images[np.arange(batch) % len(images)]
        try:
            logits = runner({"image": inputs})["logits"]
        except ModelError as error:
            raise ModelError(f"candidate {name!r} does not take a batch of {batch}: {error}") from error
        if logits.shape[0] != batch or not np.isfinite(logits).all():
            raise ModelError(f"candidate {name!r} answers a batch of {batch} with {logits.shape} or with NaN")


def hold_to_limit(what: str, parity: Parity, limit: float) -> None:
    """Raise `ModelError` where `what` differs by more than `limit` (the setting ``export_onnx.max_difference``)."""
    if not parity.max_difference <= limit:
        raise ModelError(
            f"{what} differs from PyTorch by up to {parity.max_difference:.3g} on {parity.images} validation images; "
            f"export_onnx.max_difference allows {limit:g}. Try another export_onnx.opset, or raise the limit if "
            f"{parity.changed_predictions} changed predictions are acceptable."
        )


def _runnable(file: Path, precision: str, scratch: Path) -> Path:
    """Return `file`, or, where ONNX Runtime has no kernels for it, the same arithmetic in a file that it can run."""
    if precision != "bfloat16":
        return file
    onnx.save(widened(onnx.load(file)), scratch / "widened.onnx")
    return scratch / "widened.onnx"
