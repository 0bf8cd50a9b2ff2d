"""How far one runner's answers are from another's, on the same images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.protocols import Runner
from pipeline.records.candidates import Parity


def compare(runner: Runner, reference: Runner, images: NDArray[np.uint8], batch: int = 64) -> Parity:
    """Return how far `runner`'s logits are from `reference`'s on `images` (N, C, H, W) uint8.

    Raises `ModelError` where one of them answers with NaN or infinity, which no difference would show.
    """
    largest, total, changed, values = 0.0, 0.0, 0, 0
    for start in range(0, len(images), batch):
        inputs = {"image": images[start : start + batch]}
        ours, theirs = (one(inputs)["logits"] for one in (runner, reference))
        for one, logits in ((runner, ours), (reference, theirs)):
            if not np.isfinite(logits).all():
                raise ModelError(f"{one.name} answers images {start} to {start + len(logits) - 1} with NaN or infinity")
        difference = np.abs(ours.astype(np.float64) - theirs)
        largest = max(largest, float(difference.max()))
        total, values = total + float(difference.sum()), values + difference.size
        changed += int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
    return Parity(
        images=len(images), max_difference=largest, mean_difference=total / values, changed_predictions=changed
    )
