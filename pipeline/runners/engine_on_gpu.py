"""An engine on this machine's GPU, beside the ONNX file that it was built from: how right, how alike, how fast."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.machine.gpu import Gpu
from pipeline.protocols import Runner
from pipeline.records.engines import Engine, OnGpu
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.parity import compare
from pipeline.runners.runner import TensorRTRunner
from pipeline.runners.timing import time_runners

if TYPE_CHECKING:
    from pipeline.data.split import Split

IMAGES = 1000
"""Validation images, at most, that an engine answers beside ONNX Runtime."""
SECONDS = 0.5
"""Least time of each timing."""


def why_not_measured(gpu: Gpu | None) -> str | None:
    """Return why an engine built for `gpu` cannot be run here, or None if it can."""
    if gpu is None:
        return "built ahead of time, for a GPU that is not here: neither latency nor answers were measured"
    if not torch.cuda.is_available():
        return f"PyTorch, which holds an engine's buffers, does not see the {gpu.name}: install its CUDA build"
    return None


def measure(engine: Engine, out: Path, onnx_file: Path, validation: Split) -> OnGpu:
    """Run the engine in `out` beside the ONNX file that it was built from.

    Both answer the same `IMAGES` validation images. The engine is timed at the batch sizes of its profile.
    """
    images = np.ascontiguousarray(validation.slice(0, IMAGES))
    labels = validation.labels[: len(images)]
    profile = engine.profile
    with (
        contextlib.closing(TensorRTRunner(out / engine.file)) as runner,
        contextlib.closing(OnnxRunner(onnx_file)) as reference,
    ):
        return OnGpu(
            parity=compare(runner, reference, images, profile.max),
            accuracy=_accuracy(runner, images, labels, profile.max),
            accuracy_onnx=_accuracy(reference, images, labels, profile.max),
            latency={
                batch: time_runners({"engine": runner}, images, batch, SECONDS)["engine"]
                for batch in sorted({profile.min, profile.opt, profile.max})
            },
        )


def _accuracy(runner: Runner, images: np.ndarray, labels: np.ndarray, batch: int) -> float:
    return float((answer(runner, {"image": images}, batch)["logits"].argmax(axis=1) == labels).mean())
