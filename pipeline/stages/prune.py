"""Make the student smaller, by one method or several, and let it recover by distillation after each.

Leaves a checkpoint whose spec holds the pruning plan, `history.json` and `plots/learning_curves.png`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compression.pruning import sensitivity
from pipeline.compression.pruning.reach import in_rounds
from pipeline.data.shards import load_manifest, open_split
from pipeline.export import onnx_graph
from pipeline.models import checkpoint, size
from pipeline.models.spec import ModelSpec, PruningStep, load_spec
from pipeline.protocols import Metrics, Pruner
from pipeline.settings.compression import Prune
from pipeline.settings.training import Distributed
from pipeline.training.fit import check_same_task, train_job
from pipeline.training.job import TrainingJob, evaluate

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
    """Prune the checkpoint in `student` with `config.pruner`, then with each of `config.then`, in `config.rounds` steps.

    After each step the network is trained on with `config.loss` against `teacher`. Returns accuracy before and after, size
    and speed. Raises `SettingsError` where the pruners cannot be made so, before anything else; and `ModelError` where
    nothing was pruned, the target cannot be reached, or a model was trained for other labels or images.
    """
    steps = in_rounds(config)
    manifest = load_manifest(data)
    spec, network = checkpoint.load(student)
    for who, one in (("teacher", load_spec(teacher)), ("student", spec)):
        check_same_task(who, one, manifest)
    validation = open_split(data, "validation")
    before = {"macs": size.macs(network, spec.image_shape), "parameters": size.parameters(network)}
    unpruned, _ = evaluate(network, spec, validation)
    if config.tolerated_drop is not None:
        sweep = sensitivity.sweep(
            network, spec, lambda one: evaluate(one, spec, validation)[0], what="validation accuracy"
        )
        sensitivity.write(out, sweep)
        steps = in_rounds(config, sensitivity.layer_ratios(sweep, config.tolerated_drop))
    if config.then:
        _rehearse(steps, spec, network, _batches(spec, data, seed))
    images = _batches(spec, data, seed)
    pruned, recovered = unpruned, dict[str, float]()
    for place, pruner in enumerate(steps):
        last = place + 1 == len(steps)
        spec = _with(spec, pruner(spec, network, images))
        pruned, _ = evaluate(network, spec, validation)
        begun = scratch / f"pruned{place}"
        checkpoint.save(begun, spec, network)
        job = TrainingJob(
            section="prune.fit",
            what="prune" if last else f"prune (step {place + 1} of {len(steps)})",
            spec=spec,
            fit=config.fit if last else config.fit.model_copy(update={"epochs": config.round_epochs}),
            data=data,
            seed=seed,
            scratch=scratch / f"recovery{place}",
            out=out if last else scratch / f"recovered{place}",
            strategy=distributed.strategy,
            start=begun,
            teacher=teacher,
            loss=config.loss,
            hold_zeros=any(one.zeros for one in spec.pruning),
        )
        recovered = dict(train_job(job, distributed))
        spec, network = checkpoint.load(job.out)
    return {
        **recovered,
        "validation_accuracy_before_pruning": unpruned,
        "validation_accuracy_before_recovery": pruned,
        "macs_kept": recovered["macs"] / before["macs"],
        "parameters_kept": recovered["parameters"] / before["parameters"],
        "channels_removed": sum(len(channels) for step in spec.pruning for channels in step.removed.values()),
        "zeros_share": zeros_share(network),
    }


def zeros_share(network: nn.Module) -> float:
    """Return the share of the weights of all layers, batch norms and biases left out, that are zero."""
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def _rehearse(
    steps: list[Pruner], spec: ModelSpec, network: nn.Module, images: Iterator[tuple[Tensor, Tensor]]
) -> None:
    """Give every step its turn on a copy, without recovery: what a later one cannot reach must not cost a training."""
    network = copy.deepcopy(network)
    with onnx_graph.quiet():
        for pruner in steps:
            spec = _with(spec, pruner(spec, network, images))


def _with(spec: ModelSpec, step: PruningStep) -> ModelSpec:
    return spec.model_copy(update={"pruning": (*spec.pruning, step)})


def _batches(spec: ModelSpec, data: Path, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (normalised images (N, C, H, W), labels (N,)) of the training split in random order, without end."""
    split = open_split(data, "train")
    chance = np.random.default_rng(seed)
    while True:
        rows = chance.choice(len(split), min(_PRUNER_BATCH, len(split)), replace=False)
        yield checkpoint.normalise(spec, torch.from_numpy(split.batch(rows))), torch.from_numpy(split.labels[rows])
