"""Make the student smaller by pruning, and let it recover by distillation after each step.

Leaves a checkpoint whose spec holds the pruning plan, `history.json` and `plots/learning_curves.png`.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline.compression.pruning import sensitivity
from pipeline.compression.pruning.reach import in_rounds
from pipeline.compression.pruning.sparsity import zeros_share
from pipeline.compression.pruning.steps import batches_of, prune_once, rehearse
from pipeline.data.manifest import load_manifest
from pipeline.data.split import Split, open_split
from pipeline.models import checkpoint, size
from pipeline.models.spec import ModelSpec, load_spec
from pipeline.protocols import Metrics, Pruner
from pipeline.settings.compression import Prune
from pipeline.settings.training import Distributed
from pipeline.training.fit import check_same_task, train_job
from pipeline.training.job import TrainingJob
from pipeline.training.rewrites import keep_sparsity
from pipeline.training.validation import evaluate


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
    train, validation = (open_split(data, name) for name in ("train", "validation"))
    before = {"macs": size.macs(network, spec.image_shape), "parameters": size.parameters(network)}
    unpruned, _ = evaluate(network, spec, validation)
    if config.tolerated_drop is not None:
        steps = _limited(config, config.tolerated_drop, spec, network, validation, out)
    if config.then:
        rehearse(steps, spec, network, batches_of(train, spec, seed))
    batches = batches_of(train, spec, seed)
    pruned, recovered = unpruned, dict[str, float]()
    for place, pruner in enumerate(steps):
        last = place + 1 == len(steps)
        spec = prune_once(pruner, spec, network, batches)
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
            rewrites=keep_sparsity(spec),
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


def _limited(
    config: Prune, tolerated_drop: float, spec: ModelSpec, network: nn.Module, validation: Split, out: Path
) -> list[Pruner]:
    """Return the steps limited by a sweep over all layers, which is left in `out`."""
    found = sensitivity.sweep(network, spec, lambda one: evaluate(one, spec, validation)[0], what="validation accuracy")
    sensitivity.write(out, found)
    return in_rounds(config, sensitivity.layer_ratios(found, tolerated_drop))
