"""How far one runner's answers are from another's, on the same images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.protocols import Runner
from pipeline.records.measures import Parity
from pipeline.runners.answer import answer


def compare(runner: Runner, reference: Runner, images: NDArray[np.uint8], batch: int = 64) -> Parity:
    """Return how far `runner`'s logits are from `reference`'s on `images` (N, C, H, W) uint8.

    Raises `ModelError` where one of them answers with NaN or infinity, which no difference would show.
    """
    ours, theirs = (_finite(one, images, batch) for one in (runner, reference))
    difference = np.abs(ours.astype(np.float64) - theirs)
    return Parity(
        images=len(images),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        changed_predictions=int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum()),
    )


def _finite(runner: Runner, images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
    logits = answer(runner, {"image": images}, batch)["logits"]
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise ModelError(
            f"{runner.name} answers {len(broken)} of {len(images)} images with NaN or infinity, the first of them image "
            f"{broken[0]}"
        )
    return logits
