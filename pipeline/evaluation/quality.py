"""How right a candidate is on one split, and how it differs from the teacher there: logits in, `Quality` out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import calibration, intervals
from pipeline.records.measures import Quality, ReliabilityBin, ServedParity
from pipeline.settings.gate import Evaluate


def quality(
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    teacher: NDArray[np.float32] | None,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Quality:
    """Return everything that is reported of a candidate's answers to one split.

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
    probabilities = calibration.probabilities(logits)
    confusion = confusion_matrix(labels, predicted, classes)
    compared = teacher is not None
    return Quality(
        images=len(labels),
        accuracy=intervals.share(int(right.sum()), len(labels), confidence),
        drop=intervals.bootstrap_drop(teacher_right, right, confidence, resamples, seed) if compared else None,
        mcnemar_p=intervals.mcnemar(teacher_right, right) if compared else None,
        agreement=float(np.mean(predicted == reference)),
        churn=churn(teacher_right, right),
        ece=calibration.expected_calibration_error(probabilities, labels),
        nll=calibration.nll(logits, labels),
        recall=tuple(recall(confusion)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        reliability=tuple(
            ReliabilityBin(confidence=float(sure), accuracy=float(share), images=int(images))
            for sure, share, images in zip(*calibration.reliability(probabilities, labels), strict=True)
        ),
    )


def qualities(
    labels: Mapping[str, NDArray[np.int64]],
    logits: Mapping[str, NDArray[np.float32]],
    teacher: Mapping[str, NDArray[np.float32]] | None,
    config: Evaluate,
    seed: int,
) -> dict[str, Quality]:
    """Return `quality` of every split that there are `logits` of."""
    return {
        split: quality(
            labels[split],
            mine,
            None if teacher is None else teacher[split],
            confidence=config.confidence,
            resamples=config.bootstrap,
            seed=seed,
        )
        for split, mine in logits.items()
    }


def served_parity(served: NDArray[np.float32], here: NDArray[np.float32], tolerance: float) -> ServedParity:
    """Compare the server's answers to the first images with those of the same file in this process.

    Args:
        served: the server's logits, (n, classes).
        here: those of the file, (at least n, classes).
        tolerance: largest difference, relative and absolute, that rounding explains.
    """
    here = here[: len(served)]
    close = np.isclose(served, here, rtol=tolerance, atol=tolerance).all(axis=1)
    return ServedParity(
        images=len(served), max_difference=float(np.abs(served - here).max()), differing=int(np.sum(~close))
    )


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count images by [true label][predicted label]: (classes, classes)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def recall(confusion: NDArray[np.int64]) -> list[float | None]:
    """Return the share of each class's images that are recognised; None for a class without images."""
    return [float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(confusion)]


def churn(teacher: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> float:
    """Return the share of all images that the teacher gets right and the candidate gets wrong."""
    return float(np.mean(teacher & ~candidate))
