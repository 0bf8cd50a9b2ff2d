"""What to train and how, as data, and `run`, by which each process trains it.

A job crosses to its processes as JSON (see `pipeline.training.distributed.launch`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from pipeline.data.manifest import MANIFEST_FILE
from pipeline.files import sha256
from pipeline.models import checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.settings.base import Component
from pipeline.settings.training import Fit
from pipeline.training.distributed import ranks
from pipeline.training.loop import Training
from pipeline.training.rewrites import RewriteSpec


class TrainingJob(BaseModel):
    """What to train and how: all that a process needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    section: str
    """Where its settings are, for messages: ``train.fit``."""
    what: str
    """What progress calls it: ``train``."""
    spec: ModelSpec
    fit: Fit
    data: Path
    seed: int
    scratch: Path
    """Holds the snapshot to resume from."""
    out: Path
    """Gets the checkpoint and `history.json`."""
    strategy: str = "ddp"
    start: Path | None = None
    """Checkpoint whose weights it begins with; None begins with fresh ones."""
    teacher: Path | None = None
    """Checkpoint of the teacher; needs `loss`."""
    loss: Component | None = None
    rewrites: tuple[RewriteSpec, ...] = ()
    """What changes the network for the time of the training, in this order."""
    part: tuple[int, int] = (0, 1)
    """Which of how many trainings of its stage this is, so that progress counts all of them."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that the weights depend on, so that a snapshot of another job is never taken up."""
        settings = self.model_dump(mode="json", exclude={"what", "scratch", "out", "part", "data", "start", "teacher"})
        files = [path and sha256(path / checkpoint.WEIGHTS_FILE) for path in (self.start, self.teacher)]
        files.append(sha256(self.data / MANIFEST_FILE))
        return hashlib.sha256(json.dumps([settings, files], sort_keys=True).encode()).hexdigest()


def run(job: Mapping[str, Any]) -> None:
    """Train as one process of possibly many; the main one writes the result. `job` is a `TrainingJob` as JSON."""
    torch.set_flush_denormal(True)
    training = Training(TrainingJob.model_validate(job))
    training.resume()
    training.precompute_teacher()
    while training.epoch < training.fit.epochs:
        training.run_epoch()
    if ranks.is_main():
        training.write()
