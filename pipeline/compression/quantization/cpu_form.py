"""What is found out of the form for CPUs: whether it is faster than its float original, and where it answers as it should."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.compression.quantization.proof import Proof, prove
from pipeline.compression.quantization.saturation import Saturation, without_vnni
from pipeline.data.split import open_split
from pipeline.export import onnx_graph
from pipeline.protocols import Metrics
from pipeline.records.quantization import ORIGINAL, candidate_of

SATURATION_IMAGES = 256
"""Validation images, at most, that are answered with and without 16-bit sums: 2 to 8 seconds for networks of 1 to 10 MMACs."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CpuForm:
    """What was found out of an int8 file for CPUs."""

    proof: Proof
    valid: Saturation

    def conclusions(self) -> dict[str, Any]:
        """Return what `quantization.json` says of it, the conclusions first; warn of what speaks against it."""
        if self.proof.pace == "slower":
            _log.warning("%s", self.proof.sentence)
        if self.valid.needs:
            _log.warning("%s", self.valid.sentence)
        return {
            "serve": ORIGINAL if self.proof.pace == "slower" else candidate_of("cpu"),
            "valid_on": self.valid.valid_on,
            "proof": self.proof.model_dump(mode="json"),
            "without_vnni": self.valid.model_dump(mode="json", exclude={"valid_on"}),
        }

    def metrics(self) -> Metrics:
        """Return its speed against float by batch size, and how many answers are others than those of float or exact sums."""
        found = {}
        for batch, speed in self.proof.speed.items():
            found[f"int8_speedup_batch_{batch}"] = speed.ratio
            found[f"int8_images_per_second_batch_{batch}"] = speed.int8_images_per_second
        return found | {
            "int8_agreement": self.proof.agreement,
            "int8_accuracy_without_vnni": self.valid.saturated_accuracy,
            "int8_changed_without_vnni": self.valid.changed,
        }


def examine(float_file: Path, int8_file: Path, images: NDArray[np.uint8], data: Path) -> CpuForm:
    """Time `int8_file` beside `float_file` on `images`, and find out on validation images of `data` where it is valid.

    Where it is valid is written into its metadata. Raises `ModelError`.
    """
    return CpuForm(prove(float_file, int8_file, images), _validity(int8_file, data))


def _validity(int8_file: Path, data: Path) -> Saturation:
    validation = open_split(data, "validation")
    count = min(SATURATION_IMAGES, len(validation))
    valid = without_vnni(int8_file, validation.slice(0, count), validation.labels[:count])
    model = onnx.load(int8_file)
    onnx_graph.annotate(model, {"valid_on": valid.valid_on, "needs_cpu_flags": json.dumps(valid.needs)})
    onnx.save(model, int8_file)
    return valid
