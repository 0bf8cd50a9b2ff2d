"""What the three training stages share: checking, launching and summarising a job."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from pipeline.data.manifest import Manifest, load_manifest
from pipeline.errors import ModelError
from pipeline.models.checkpoint import load
from pipeline.models.size import macs, parameters
from pipeline.models.spec import ModelSpec, Preprocessing, image_classifier
from pipeline.progress import events
from pipeline.protocols import Metrics
from pipeline.records.training import HISTORY_FILE
from pipeline.report.curves import draw_curves
from pipeline.settings.base import Component
from pipeline.settings.training import Distributed
from pipeline.training.batches import check_batch, steps_per_epoch
from pipeline.training.distributed.launch import launch, processes
from pipeline.training.job import TrainingJob

_log = logging.getLogger(__name__)


def new_spec(model: Component, manifest: Manifest) -> ModelSpec:
    """Return the spec of a fresh `model` for the data that `manifest` describes."""
    preprocessing = Preprocessing(mean=manifest.mean, std=manifest.std)
    return image_classifier(model.name, model.arguments, manifest.image_shape, manifest.labels, preprocessing)


def check_same_task(who: str, spec: ModelSpec, manifest: Manifest) -> None:
    """Raise `ModelError` unless `spec` answers about the images and labels that `manifest` describes."""
    if spec.labels != manifest.labels:
        raise ModelError(
            f"the {who} knows the labels {', '.join(spec.labels)}, but the data set {manifest.name} has "
            f"{', '.join(manifest.labels)}: train the {who} on this data set first"
        )
    if spec.image_shape != manifest.image_shape:
        raise ModelError(
            f"the {who} takes images of shape {spec.image_shape}, but the data set {manifest.name} has "
            f"{manifest.image_shape}: train the {who} on this data set first"
        )


def train_job(job: TrainingJob, distributed: Distributed) -> Metrics:
    """Train under torchrun, draw the curves into ``job.out/plots`` and return its metrics."""
    manifest = load_manifest(job.data)
    check_batch(job.section, job.fit, manifest.counts["train"], processes(distributed))
    if job.loss and job.fit.label_smoothing:
        smoothing = job.fit.label_smoothing
        _log.warning("%s.label_smoothing is %s, which a distillation loss does not use", job.section, smoothing)
    part, parts = job.part
    steps = job.fit.epochs * steps_per_epoch(job.fit, manifest.counts["train"])
    events.report(job.what, done=part * steps, total=parts * steps)
    begun = time.perf_counter()
    launch("pipeline.training.job:run", job.model_dump(mode="json"), distributed, job.scratch)
    seconds = time.perf_counter() - begun
    history = read_history(job.out)
    draw_curves(history, job.what, job.out / "plots" / "learning_curves.png")
    return {**size(job.out), **_summary(history), "seconds": seconds}


def read_history(out: Path) -> list[dict[str, float]]:
    """Return what a finished training wrote of its epochs."""
    history: list[dict[str, float]] = json.loads((out / HISTORY_FILE).read_text(encoding="utf-8"))
    return history


def size(directory: Path) -> dict[str, float]:
    """Return ``parameters`` and ``macs`` of the checkpoint in `directory`."""
    spec, network = load(directory)
    return {"parameters": parameters(network), "macs": macs(network, spec.image_shape)}


def _summary(history: list[dict[str, Any]]) -> dict[str, float]:
    best = max(history, key=lambda row: (row["validation_accuracy"], row["epoch"]))
    return {
        "validation_accuracy": best["validation_accuracy"],
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "images_per_second": sum(row["images_per_second"] for row in history) / len(history),
    }
