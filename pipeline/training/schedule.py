"""The learning rate over the steps of a training."""

from __future__ import annotations

import math

from pipeline.settings.training import Fit


def learning_rate(fit: Fit, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0) of `steps`: a straight rise to ``fit.lr``, then the schedule.

    cosine falls as a half cosine (Loshchilov and Hutter, https://arxiv.org/abs/1608.03983); onecycle falls in a straight
    line (after Smith and Topin, https://arxiv.org/abs/1708.07120); both end at zero. constant stays.
    """
    rise = fit.warmup * steps
    if step < rise:
        return fit.lr * (step + 1) / (rise + 1)
    done = (step - rise) / max(1.0, steps - rise)
    if fit.schedule == "cosine":
        return fit.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return fit.lr * (1.0 - done) if fit.schedule == "onecycle" else fit.lr
