"""How far a stage is, and its curves: one JSON line an event, so that any process of a stage can write them.

A stage calls `report("train", done=3, total=10, step=3, loss=0.4)`. Where `FLYWEIGHT_PROGRESS` names a file the line is
appended there (one write each, so lines of several processes do not mix) and whoever runs the stage follows it, for
MLflow's curves and for the person who waits. Without it, it is only logged.
"""

from __future__ import annotations

import json
import logging
import os
import time

ENVIRONMENT = "FLYWEIGHT_PROGRESS"
_log = logging.getLogger(__name__)


def report(what: str, *, done: float, total: float, step: int | None = None, **metrics: float) -> None:
    """Say that `done` of `total` of `what` is behind us; `metrics` at `step` (default: int(done)) become curves."""
    event = {
        "time": time.time(),
        "what": what,
        "done": done,
        "total": total,
        "step": int(done) if step is None else step,
        "metrics": metrics,
    }
    path = os.environ.get(ENVIRONMENT)
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, (json.dumps(event) + "\n").encode())
        finally:
            os.close(descriptor)
    else:
        values = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        _log.info("%s %s/%s %s", what, done, total, values)
