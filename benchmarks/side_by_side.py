"""Many trainings on one machine, several at a time, each by the training code as it is; what is finished is not trained again.

A small network leaves a GPU idle between its kernels, so that several processes together see more images a second.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.data.manifest import load_manifest
from pipeline.machine.cpu import cores
from pipeline.models.spec import SPEC_FILE
from pipeline.settings.base import Component
from pipeline.settings.training import Fit
from pipeline.training.fit import new_spec
from pipeline.training.job import TrainingJob, run


@dataclass(frozen=True)
class Plan:
    """One training: a network, its fit, and whom it learns from."""

    model: Component
    fit: Fit
    seed: int
    loss: Component | None = None

    def job(self, data: Path, work: Path, teacher: Path | None = None) -> TrainingJob:
        """Return the job that trains it in `work`, from `teacher` where the plan has a loss."""
        return TrainingJob(
            section="fit",
            what=work.name,
            spec=new_spec(self.model, load_manifest(data)),
            fit=self.fit,
            data=data,
            seed=self.seed,
            scratch=work / "scratch",
            out=work / "out",
            teacher=teacher if self.loss else None,
            loss=self.loss,
        )


def train_all(jobs: Mapping[str, TrainingJob], workers: int, until: float = float("inf")) -> Iterator[str]:
    """Train `jobs`, `workers` at a time and in this order; yield the name of each that is finished.

    None is begun after `until` (of `time.monotonic`). One that fails is named and does not stop the others.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // workers)
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        begun = {pool.submit(_train, job, until): name for name, job in jobs.items()}
        for future in as_completed(begun):
            error = future.exception()
            if error is not None:
                print(f"{begun[future]} failed: {type(error).__name__}: {error}", flush=True)
            elif future.result():
                yield begun[future]


def finished(job: TrainingJob) -> bool:
    """Whether `job` was trained to its end."""
    return (job.out / SPEC_FILE).exists()


def device_name() -> str:
    """Return what the trainings ran on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _train(job: TrainingJob, until: float) -> bool:
    """Train `job` unless it is finished; return whether it is."""
    if not finished(job) and time.monotonic() < until:
        run(job.model_dump(mode="json"))
    return finished(job)
