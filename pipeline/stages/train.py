"""Train the teacher.

Leaves a checkpoint, `history.json` and `plots/learning_curves.png`.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data.manifest import load_manifest
from pipeline.protocols import Metrics
from pipeline.settings.training import Distributed, Train
from pipeline.training.fit import new_spec, train_job
from pipeline.training.job import TrainingJob


def train(config: Train, *, data: Path, distributed: Distributed, seed: int, out: Path, scratch: Path) -> Metrics:
    """Train `config.model` on the training split of `data`; return its validation accuracy, size and speed.

    Raises `SettingsError` for settings that do not fit the model, the data or this machine, or make training diverge.
    """
    job = TrainingJob(
        section="train.fit",
        what="train",
        spec=new_spec(config.model, load_manifest(data)),
        fit=config.fit,
        data=data,
        seed=seed,
        scratch=scratch,
        out=out,
        strategy=distributed.strategy,
    )
    return train_job(job, distributed)
