"""Whether training with quantization helped: both graphs on the validation split, and how likely a mere chance is."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.split import Split, open_split
from pipeline.evaluation.intervals import mcnemar
from pipeline.protocols import Metrics
from pipeline.records.quantization import QAT
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import OnnxRunner

PTQ = "ptq"
"""What was not trained."""
CHANCE = 0.05
"""Training is kept where McNemar's test gives its gain at most this probability of being luck."""
_log = logging.getLogger(__name__)


def compare(files: Mapping[str, Path], data: Path) -> dict[str, Any]:
    """Return the accuracy of both graphs on the validation split, which to keep, and how likely a mere chance is.

    A gain of a few images does not carry over to the next images: with so little to tell them apart, the simpler stays.
    """
    validation = open_split(data, "validation")
    right = {name: answered_right(file, validation) for name, file in files.items()}
    accuracies = {name: float(answers.mean()) for name, answers in right.items()}
    chance = mcnemar(right[PTQ], right[QAT])
    kept = QAT if accuracies[QAT] > accuracies[PTQ] and chance <= CHANCE else PTQ
    if kept == PTQ:
        _log.warning(
            "training with quantization did not help: %.4f on the validation split against %.4f without (p = %.2g, at "
            "most %g is asked for); what was not trained is kept",
            accuracies[QAT], accuracies[PTQ], chance, CHANCE,
        )  # fmt: skip
    return {"kept": kept, "validation_accuracy": accuracies, "p": chance}


def training_metrics(record: Mapping[str, Any]) -> Metrics:
    """Return the numbers of what `compare` found, and how long the ``training`` beside it took."""
    accuracies = record["validation_accuracy"]
    return {
        **{f"{name}_validation_accuracy": value for name, value in accuracies.items()},
        "qat_gain": accuracies[QAT] - accuracies[PTQ],
        "qat_p": record["p"],
        "qat_kept": float(record["kept"] == QAT),
        "qat_seconds": record["training"]["seconds"],
    }


def answered_right(file: Path, split: Split) -> NDArray[np.bool_]:
    """Return which images of `split` the ONNX `file` answers rightly: (images,)."""
    with contextlib.closing(OnnxRunner(file)) as runner:
        logits = answer(runner, {"image": split})["logits"]
    right: NDArray[np.bool_] = logits.argmax(axis=1) == split.labels
    return right
