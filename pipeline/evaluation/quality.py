"""How right a candidate is on one split, and how it differs from the teacher there: logits in, `Quality` out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import statistics
from pipeline.records.evaluation import Estimate, Quality, ReliabilityBin


def quality(
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    teacher: NDArray[np.float32] | None,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Quality:
    """Return everything that is told of a candidate's answers to one split.

    Args:
        labels: what is true, (images,).
        logits: the candidate's, (images, classes).
        teacher: the teacher's logits for the same images, (images, classes); None where this is the teacher.
        confidence: level of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    reference = predicted if teacher is None else teacher.argmax(axis=1)
    right, teacher_right = predicted == labels, reference == labels
    probabilities = statistics.softmax(logits)
    confusion = statistics.confusion_matrix(labels, predicted, classes)
    low, high = statistics.wilson(int(right.sum()), len(labels), confidence)
    drop = None
    if teacher is not None:
        value, least, most = statistics.bootstrap_drop(teacher_right, right, confidence, resamples, seed)
        drop = Estimate(value=value, low=least, high=most)
    return Quality(
        images=len(labels),
        accuracy=Estimate(value=float(right.mean()), low=low, high=high),
        drop=drop,
        mcnemar_p=None if teacher is None else statistics.mcnemar(teacher_right, right),
        agreement=float(np.mean(predicted == reference)),
        churn=statistics.churn(teacher_right, right),
        ece=statistics.expected_calibration_error(probabilities, labels),
        nll=statistics.nll(logits, labels),
        recall=tuple(statistics.recall(confusion)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        reliability=tuple(
            ReliabilityBin(confidence=float(sure), accuracy=float(share), images=int(images))
            for sure, share, images in zip(*statistics.reliability(probabilities, labels), strict=True)
        ),
    )
