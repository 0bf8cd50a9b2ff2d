"""Take channels out of the student and let it recover by distillation.

Leaves a checkpoint whose spec holds the pruning plan, `history.json` and `plots/learning_curves.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import checkpoint, macs
from pipeline.checkpoint import ModelSpec
from pipeline.config import Distributed, Prune
from pipeline.data import load_manifest, open_split
from pipeline.fitting import check_same_task, train_job
from pipeline.training import TrainingJob, evaluate
from pipeline.types import Metrics

_PRUNER_BATCH = 64


def prune(
    config: Prune,
    *,
    data: Path,
    teacher: Path,
    student: Path,
    distributed: Distributed,
    seed: int,
    out: Path,
    scratch: Path,
) -> Metrics:
    """Prune the checkpoint in `student` with `config.pruner` and train it on with `config.loss` against `teacher`.

    Returns accuracy before and after each step, size and speed. Raises `ModelError` where nothing was pruned, the target
    cannot be reached, or a model was trained for other labels or images.
    """
    manifest = load_manifest(data)
    spec, network = checkpoint.load(student)
    for who, one in (("teacher", checkpoint.load_spec(teacher)), ("student", spec)):
        check_same_task(who, one, manifest)
    validation = open_split(data, "validation")
    before = {"macs": macs.macs(network, spec.image_shape), "parameters": macs.parameters(network)}
    unpruned, _ = evaluate(network, spec, validation)

    step = config.pruner.build("pruners")(spec, network, _batches(spec, data, seed))
    spec = spec.model_copy(update={"pruning": (*spec.pruning, step)})
    pruned, _ = evaluate(network, spec, validation)
    checkpoint.save(scratch / "pruned", spec, network)

    job = TrainingJob(
        section="prune.fit",
        what="prune",
        spec=spec,
        fit=config.fit,
        data=data,
        seed=seed,
        scratch=scratch,
        out=out,
        strategy=distributed.strategy,
        start=scratch / "pruned",
        teacher=teacher,
        loss=config.loss,
    )
    recovered = train_job(job, distributed)
    return {
        **recovered,
        "validation_accuracy_before_pruning": unpruned,
        "validation_accuracy_before_recovery": pruned,
        "macs_kept": recovered["macs"] / before["macs"],
        "parameters_kept": recovered["parameters"] / before["parameters"],
        "channels_removed": sum(map(len, step.removed.values())),
    }


def _batches(spec: ModelSpec, data: Path, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (normalised images (N, C, H, W), labels (N,)) of the training split in random order, without end."""
    split = open_split(data, "train")
    chance = np.random.default_rng(seed)
    while True:
        rows = chance.choice(len(split), min(_PRUNER_BATCH, len(split)), replace=False)
        yield checkpoint.normalise(spec, torch.from_numpy(split.batch(rows))), torch.from_numpy(split.labels[rows])
