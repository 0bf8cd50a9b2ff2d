"""How long a network takes for one image in ONNX Runtime, on one thread of a CPU.

That is what serves it. PyTorch itself would be quicker to time and would answer another question: what it spends on
starting each operator does not shrink with the channels, and outweighs the arithmetic of the small networks that
pruning is for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from pipeline.export import onnx_graph
from pipeline.models.spec import ModelSpec
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.timing import time_runners

_SECONDS = 0.5
"""Time for each of the two networks that take turns."""


def beside(spec: ModelSpec, network: nn.Module) -> Callable[[nn.Module], tuple[float, float]]:
    """Return a function that times a smaller network in turns with `network` as it is now.

    It returns the median milliseconds of (`network`, the smaller one) at batch 1. Each call takes about a second, and as
    long again or longer for the export. Raises `ModelError` where a network cannot be exported.
    """
    whole = _runner(spec, network)
    image = np.zeros((1, *spec.image_shape), dtype=np.uint8)

    def milliseconds(smaller: nn.Module) -> tuple[float, float]:
        timed = time_runners({"before": whole, "after": _runner(spec, smaller)}, image, batch=1, seconds=_SECONDS)
        return timed["before"].p50_ms, timed["after"].p50_ms

    return milliseconds


def _runner(spec: ModelSpec, network: nn.Module) -> OnnxRunner:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "model.onnx"
        onnx_graph.export(spec, network, file)
        return OnnxRunner(file)
