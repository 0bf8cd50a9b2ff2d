"""int8 where it costs nothing, float where it does: layers go back to float, worst first, until the answers agree.

Starts from static quantization. What a layer costs is measured with that layer alone in int8: the mean Kullback-Leibler
divergence of the answers from those of the float model, on a quarter of the calibration images that set no range. Then
the most sensitive layers go back to float, one after another, until the budget holds. This is the ranking by single layers of Wu
et al., "Integer Quantization for Deep Learning Inference" (https://arxiv.org/abs/2004.09602), section 5.2 ("partial
quantization"), with the model's own answers for labels.

Each layer in float costs speed, on both of its sides: count what is left in the metrics, and time it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import Field

from pipeline.compression.quantization.calibration import Method, check_images
from pipeline.compression.quantization.quantizers.static import Calibrated, Static, census
from pipeline.compression.quantization.writing import check_target, write
from pipeline.errors import ModelError
from pipeline.files import write_json
from pipeline.protocols import Metrics
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import OnnxRunner

RECORD_FILE = "mixed.json"
HELD_OUT = 4
"""One calibration image of so many sets no range and is answered instead."""


@dataclass(frozen=True)
class Drift:
    """How far answers are from those of the float model."""

    disagreement: float
    """Share of the images for which another class is predicted."""
    divergence: float
    """Mean Kullback-Leibler divergence of the predicted distribution, in nats."""


class Mixed:
    """Static quantization in which the layers that suffer most stay float.

    Args:
        max_disagreement: largest share of the held-out calibration images for which another class may be predicted than
            by the float model. One image is 4 / quantize.calibration_images: less than that means none.
        calibration: as in `static`.
        percentile: as in `static`.
        fold: as in `static`.
        reduce_range: as in `static`.
    """

    def __init__(
        self,
        max_disagreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01,
        calibration: Method = "minmax",
        percentile: Annotated[float, Field(ge=90.0, le=100.0)] = 99.99,
        fold: Literal["auto", "on", "off"] = "auto",
        reduce_range: bool | Literal["auto"] = "auto",
    ) -> None:
        self.max_disagreement = max_disagreement
        self._static = Static(calibration, percentile, fold, reduce_range)

    def __call__(self, onnx_file: Path, calibration: NDArray[np.uint8], out: Path, target: str) -> Metrics:
        """Quantize `onnx_file` to `out` for `target`, 'cpu' or 'tensorrt', and write `RECORD_FILE` beside it.

        `calibration` holds raw images (N, C, H, W); the last quarter is held out. Returns what `static` returns,
        ``float_layers``, ``disagreement`` and ``divergence`` as left, and ``int8_disagreement`` of int8 throughout.
        Raises `ModelError`, also where no layer can be int8 within the budget.
        """
        check_target(target, ("cpu", "tensorrt"), "mixed")
        check_images(calibration, onnx.load(onnx_file))
        if len(calibration) < HELD_OUT:
            raise ModelError(
                f"mixed holds one calibration image of {HELD_OUT} out to measure on, and there are {len(calibration)}: "
                f"set quantize.calibration_images to at least {HELD_OUT}; hundreds are better"
            )
        ranging = len(calibration) - len(calibration) // HELD_OUT
        calibrated = self._static.calibrate(onnx_file, calibration[:ranging])
        measure = _Measure(self._static, calibrated, target, onnx_file, calibration[ranging:])
        everything = measure(())
        ranking = self._rank(measure) if everything.disagreement > self.max_disagreement else []
        floats, left = self._return_to_float(measure, everything, ranking)
        model = self._static.quantize(calibrated, target, floats)
        facts = {"calibration": self._static.calibration, "float_layers": json.dumps(floats)}
        write(model, calibrated.source, out, target, "int8", **facts)
        record = {
            "max_disagreement": self.max_disagreement,
            "held_out_images": len(calibration) - ranging,
            "float_layers": floats,
            "int8": asdict(everything),
            "left": asdict(left),
            "ranking": ranking,
        }
        write_json(out.with_name(RECORD_FILE), record)
        return {
            **census(out, target),
            "float_layers": float(len(floats)),
            "disagreement": left.disagreement,
            "divergence": left.divergence,
            "int8_disagreement": everything.disagreement,
        }

    def _rank(self, measure: _Measure) -> list[dict[str, Any]]:
        """Return each layer with what it costs to have that one alone in int8, most sensitive first."""
        names = [node.name for node in measure.layers]
        found = []
        for node in measure.layers:
            alone = measure([name for name in names if name != node.name])
            weights = next((name for name in node.input if name in measure.constants), None)
            found.append({"layer": node.name, "operator": node.op_type, "weights": weights, **asdict(alone)})
        return sorted(found, key=lambda row: (-row["divergence"], row["layer"]))

    def _return_to_float(
        self, measure: _Measure, everything: Drift, ranking: list[dict[str, Any]]
    ) -> tuple[list[str], Drift]:
        """Return the layers that must be float, in the order in which they went, and what drift is left."""
        floats: list[str] = []
        left = everything
        for row in ranking[:-1]:
            if left.disagreement <= self.max_disagreement:
                break
            floats.append(row["layer"])
            left = measure(floats)
        if left.disagreement > self.max_disagreement:
            raise ModelError(
                f"quantizer.max_disagreement is {self.max_disagreement}, and even with one layer of {len(ranking)} in int8 "
                f"{left.disagreement:.2%} of the held-out images are answered otherwise than in float: set it higher, or "
                f"keep the float candidate"
            )
        return floats, left


class _Measure:
    """Answers of a network with some layers in float, beside those of the float model."""

    def __init__(
        self, static: Static, calibrated: Calibrated, target: str, float_file: Path, images: NDArray[np.uint8]
    ) -> None:
        self._static, self._calibrated, self._target, self._images = static, calibrated, target, images
        self.layers = calibrated.layers(target)
        self.constants = {tensor.name for tensor in calibrated.network.graph.initializer}
        self._expected = _answers(float_file, images)

    def __call__(self, keep_float: Collection[str]) -> Drift:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "model.onnx"
            onnx.save(self._static.quantize(self._calibrated, self._target, keep_float), file)
            return drift(self._expected, _answers(file, self._images))


def drift(expected: NDArray[np.float32], found: NDArray[np.float32]) -> Drift:
    """Compare logits (N, classes) with those of the float model."""
    right, other = _log_softmax(expected), _log_softmax(found)
    divergence = (np.exp(right) * (right - other)).sum(1).mean()
    return Drift(float((expected.argmax(1) != found.argmax(1)).mean()), float(divergence))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _answers(file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with contextlib.closing(OnnxRunner(file)) as runner:
        return next(iter(answer(runner, {"image": images}).values()))


COMPONENT = Mixed
