"""The range of every activation, from real images, in memory that does not grow with their number.

The images go through the float network twice at most: once for the lowest and the highest value of each tensor, and, for
the methods that leave values out, once more for a histogram whose bins are known by then. ONNX Runtime's own histograms
are not used: they start from the first batch and add bins of the same width when a later one reaches further, which has
no bound, and its search for the best entropy starts with as many bins as it may merge, so that it has nothing to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pipeline.errors import ModelError
from pipeline.export.preprocessing import NORMALISED
from pipeline.models.preprocessing import Normalisation
from pipeline.runners.onnx_runner import session_options

Method = Literal["minmax", "percentile", "entropy"]
Range = tuple[float, float]
BATCH = 32
"""Maximum of images that are in memory as activations at the same time."""
BYTES = 1 << 28
"""Maximum of bytes of activations in memory at the same time, unless one image alone has more."""
BINS = 2048
LEVELS = 128
"""Steps that 8 bits have on one side of zero."""


def check_images(images: NDArray, model: onnx.ModelProto) -> None:
    """Raise `ModelError` unless `images` are of the type and size that `model` takes, and all of them numbers."""
    tensor = model.graph.input[0].type.tensor_type
    wanted = tuple(dim.dim_value for dim in tensor.shape.dim[1:])
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    nan = int(np.isnan(images).sum()) if np.issubdtype(images.dtype, np.floating) else 0
    if images.dtype != dtype or images.shape[1:] != wanted or not len(images) or nan:
        raise ModelError(
            f"calibration takes raw images, {dtype} of shape (N, {', '.join(map(str, wanted))}); "
            f"got {images.dtype} of shape {images.shape}{f', {nan} of its values NaN' if nan else ''}. "
            f"Take images of the data set that the model was trained on, as `flyweight quantize` does"
        )


@dataclass(frozen=True)
class Images:
    """Raw calibration images and what normalises them."""

    pixels: NDArray[np.uint8]
    normalisation: Normalisation

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        """Yield normalised images (at most `size`, C, H, W), one batch at a time."""
        for start in range(0, len(self.pixels), size):
            yield self.normalisation(self.pixels[start : start + size])


def ranges(
    network: onnx.ModelProto, images: Images, method: Method = "minmax", percentile: float = 99.99
) -> dict[str, Range]:
    """Return (lowest, highest) of every float tensor between the operators of `network`, its input among them.

    Args:
        network: float, from `NORMALISED`, its shapes known except for the batch.
        images: what sets the ranges.
        method: minmax keeps all values; percentile and entropy leave out the outermost.
        percentile: share of the values that stay inside the range, in per cent; for percentile only.

    Raises:
        ModelError: an activation is NaN or infinite.
    """
    watched = _Watched(network)
    one_image = sum(values.nbytes for values in watched(next(images.batches(1))).values())
    size = max(1, min(BATCH, BYTES // one_image))
    seen: dict[str, Range] = {}
    for batch in images.batches(size):
        for name, values in watched(batch).items():
            low, high = seen.get(name, (np.inf, -np.inf))
            seen[name] = float(np.minimum(low, values.min())), float(np.maximum(high, values.max()))
    for name, found in seen.items():
        if not np.isfinite(found).all():
            raise ModelError(
                f"activation {name!r} is NaN or infinite on the calibration images: the float model is broken, "
                f"and quantizing cannot repair it. Look at its training, or train it again with a lower learning rate"
            )
    if method == "minmax":
        return seen
    histograms = {name: np.zeros(BINS, np.int64) for name in seen}
    zeros = dict.fromkeys(seen, 0)
    for batch in images.batches(size):
        for name, values in watched(batch).items():
            magnitudes = np.abs(values)
            histograms[name] += np.histogram(magnitudes, BINS, (0, _reach(seen[name])))[0]
            zeros[name] += int(values.size - np.count_nonzero(values))
    return {
        name: _clip(found, _threshold(histograms[name], zeros[name], method, percentile) * _reach(found))
        for name, found in seen.items()
    }


class _Watched:
    """A network that shows every float tensor between its operators."""

    def __init__(self, network: onnx.ModelProto) -> None:
        model = onnx.shape_inference.infer_shapes(network)
        outputs = {output.name for output in model.graph.output}
        inner = [value for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT]
        model.graph.output.extend(value for value in inner if value.name not in outputs)
        # Fused operators would hide what is between them.
        plain = session_options(graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), plain, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """Normalised images (N, C, H, W) -> every float tensor by name."""
        found = dict(zip(self._names, self._session.run(self._names, {NORMALISED: images}), strict=True))
        return {NORMALISED: images, **found}


def _reach(seen: Range) -> float:
    """The largest magnitude in a range; something above zero where all is zero."""
    return max(abs(seen[0]), abs(seen[1])) or 1.0


def _clip(seen: Range, threshold: float) -> Range:
    return max(seen[0], -threshold), min(seen[1], threshold)


def _threshold(histogram: NDArray[np.int64], zeros: int, method: Method, percentile: float) -> float:
    """Return where to cut magnitudes that `histogram` counts in even bins from 0 to 1."""
    if method == "percentile":
        inside = np.searchsorted(histogram.cumsum(), percentile / 100 * histogram.sum())
        return float(inside + 1) / BINS
    without_zeros = histogram.copy()
    without_zeros[0] -= zeros  # zero is one of the steps of every scale: nothing is lost on it
    return lowest_divergence(without_zeros) / BINS


def lowest_divergence(histogram: NDArray[np.int64]) -> int:
    """Return how many bins to keep so that `LEVELS` steps tell most of the distribution of magnitudes.

    For each number of bins, what lies beyond is counted in the last one kept (P), and the bins are merged into `LEVELS`
    steps and spread again over those of them that are not empty (Q). The least Kullback-Leibler divergence of Q from P
    wins. Every sixteenth number of bins is tried. Migacz, "8-bit Inference with TensorRT", GTC 2017
    (https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf).
    """
    total = histogram.sum()
    if not total:
        return len(histogram)
    kept = np.arange(LEVELS, len(histogram) + 1, LEVELS // 8)
    return int(kept[np.argmin([_divergence(histogram, int(bins), total) for bins in kept])])


def _divergence(histogram: NDArray[np.int64], bins: int, total: int) -> float:
    inside = histogram[:bins]
    reference = inside / total
    reference[-1] += histogram[bins:].sum() / total
    step = np.arange(bins) * LEVELS // bins
    filled = inside > 0
    share = np.bincount(step, inside) / np.maximum(np.bincount(step, filled), 1)
    merged = np.where(filled, share[step], 0.0)
    merged = merged / max(merged.sum(), 1e-12)
    counted = reference > 0
    # A value that falls into an empty bin has probability 0 in Q; it is given a little, so that the divergence stays finite.
    return float((reference[counted] * np.log(reference[counted] / np.maximum(merged[counted], 1e-9))).sum())
