"""The training loop behind teacher, student and recovery, for one process or many.

After each epoch the state goes to a snapshot; a job that is run again goes on from there and, in one process on a CPU, ends
with the very same weights. The epoch that is kept is the best on the validation split; the test split is never opened here.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.split import open_split
from pipeline.errors import SettingsError
from pipeline.files import write_json
from pipeline.models import checkpoint
from pipeline.progress import events
from pipeline.records.training import HISTORY_FILE
from pipeline.training import onednn, snapshot
from pipeline.training.average import update_average
from pipeline.training.batches import Batch, Batches, check_batch
from pipeline.training.criterion import Criterion
from pipeline.training.distributed import ranks
from pipeline.training.optimizer import load_moments, make_optimizer, moments
from pipeline.training.precision import use_bf16
from pipeline.training.rewrites import make
from pipeline.training.schedule import learning_rate
from pipeline.training.teacher import Teacher
from pipeline.training.validation import evaluate

if TYPE_CHECKING:
    from pipeline.training.job import TrainingJob

_SNAPSHOT_FILE = "snapshot.safetensors"
_CHECK_STEPS = 10
_REPORT_SECONDS = 1.0


class Training:
    """A job under way."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.fit = job, job.fit
        self.device = ranks.device()
        train, self.validation = open_split(job.data, "train"), open_split(job.data, "validation")
        check_batch(job.section, job.fit, len(train), ranks.world())
        self.batches = Batches(train, job.spec, job.fit, job.seed, self.device)
        torch.manual_seed(job.seed)
        network = checkpoint.load(job.start)[1] if job.start else checkpoint.build(job.spec)
        self.criterion = Criterion(job.loss, job.fit.label_smoothing, self.device)
        self.unsafe = onednn.is_unsafe(nn.ModuleList([network, self.criterion]), self.device)
        self.rewrites = [make(spec) for spec in job.rewrites]
        for rewrite in self.rewrites:
            network = rewrite.apply(job.spec, network)
        self.network = network.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.shared = ranks.share(self.network, job.strategy)
        self.average = copy.deepcopy(self.network).requires_grad_(False) if job.fit.ema_decay else None
        self.bf16 = use_bf16(job.section, job.fit, self.device)
        self.teacher = Teacher(job.teacher, self.device, self.bf16) if job.teacher else None
        self.optimizer = make_optimizer(nn.ModuleList([self.network, self.criterion]), job.fit)
        self.steps = self.batches.steps
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_accuracy = -1.0

    def precompute_teacher(self) -> None:
        """Where every epoch shows the same views, calculate what the teacher answers before the first."""
        if self.teacher is not None:
            self.teacher.precompute(self.batches, self.job.data, self.job.what)

    def run_epoch(self) -> None:
        """One pass over the training images, a look at the validation images, and a snapshot."""
        _seed(self.job.seed, self.epoch)
        begun = reported = time.perf_counter()
        reported_step = 0
        losses = torch.zeros(self.steps, device=self.device)
        for step, batch in enumerate(self.batches.epoch(self.epoch)):
            losses[step] = self._step(batch, self.epoch * self.steps + step)
            if (step + 1) % _CHECK_STEPS == 0 or step + 1 == self.steps:
                self._check(losses[: step + 1])
                now = time.perf_counter()
                if now - reported >= _REPORT_SECONDS:
                    speed = (step + 1 - reported_step) * self.fit.batch_size / (now - reported)
                    self._report(step + 1, loss=float(losses[reported_step : step + 1].mean()), images_per_second=speed)
                    reported, reported_step = now, step + 1
        seconds = time.perf_counter() - begun
        for module in (self.network, self.average, self.criterion):
            if module is not None:
                ranks.agree_on_buffers_(module)
        self.epoch += 1
        self._evaluate(float(ranks.total(losses.mean()) / ranks.world()), seconds)
        if ranks.is_main():
            self._save_snapshot()

    def write(self) -> None:
        """Write the best epoch's checkpoint, what rewrites add to it, and the history."""
        out = self.job.out
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / HISTORY_FILE, self.history)
        network = self.network
        network.load_state_dict(self.best)
        for rewrite in reversed(self.rewrites):
            rewrite.files(network, out)
            network = rewrite.restore(network)
        checkpoint.save(out, self.job.spec, network)

    def resume(self) -> None:
        """Take up the snapshot of this very job, if there is one."""
        found = snapshot.load(self.job.scratch / _SNAPSHOT_FILE)
        if found is None or found[1]["fingerprint"] != self.job.fingerprint:
            return
        tensors, state = found
        for name, module in self._modules().items():
            module.load_state_dict(_under(name, tensors))
        self.best = _under("best", tensors)
        load_moments(self.optimizer, _under("optimizer", tensors))
        self.epoch, self.history, self.best_accuracy = state["epoch"], state["history"], state["best_accuracy"]

    def _modules(self) -> dict[str, nn.Module]:
        """Return all that changes in a training, by the names that it has in a snapshot."""
        modules = {"network": self.network, "criterion": self.criterion}
        return modules if self.average is None else modules | {"average": self.average}

    def _save_snapshot(self) -> None:
        """Write everything that the next epoch depends on; random numbers do not: each epoch seeds its own."""
        tensors = _prefixed("best", self.best) | _prefixed("optimizer", moments(self.optimizer))
        for name, module in self._modules().items():
            tensors |= _prefixed(name, module.state_dict())
        state = {
            "fingerprint": self.job.fingerprint,
            "epoch": self.epoch,
            "history": self.history,
            "best_accuracy": self.best_accuracy,
        }
        self.job.scratch.mkdir(parents=True, exist_ok=True)
        snapshot.save(self.job.scratch / _SNAPSHOT_FILE, tensors, state)

    def _step(self, batch: Batch, step: int) -> Tensor:
        """Learn from `batch`; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.fit, step, self.fit.epochs * self.steps)
        with onednn.convolutions(self.unsafe):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.shared(batch.view)
            teacher_logits = None if self.teacher is None else self.teacher(batch)
            loss: Tensor = self.criterion(logits, teacher_logits, batch.labels)
            loss.backward()
        self.criterion.average_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for rewrite in self.rewrites:
            rewrite.after_step(self.network)
        if self.average is not None:
            update_average(self.average, self.network, min(self.fit.ema_decay, (step + 1) / (step + 10)))
        return loss.detach()

    def _evaluate(self, train_loss: float, seconds: float) -> None:
        """Evaluate what would be kept, and keep it if it is the best so far."""
        candidate = self.network if self.average is None else self.average
        accuracy, loss = evaluate(candidate, self.job.spec, self.validation)
        speed = self.steps * self.fit.batch_size / seconds
        numbers = {"train_loss": train_loss, "validation_loss": loss, "validation_accuracy": accuracy}
        self.history.append({"epoch": self.epoch, **numbers, "seconds": seconds, "images_per_second": speed})
        self._report(0, **numbers)
        if accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in candidate.state_dict().items()}

    def _check(self, losses: Tensor) -> None:
        if torch.isfinite(losses).all():
            return
        step = int((~torch.isfinite(losses)).nonzero()[0]) + 1
        raise SettingsError(
            f"{self.job.what}: the loss became {float(losses[step - 1])} in step {step} of {self.steps} of epoch "
            f"{self.epoch + 1}: training diverges. Lower {self.job.section}.lr ({self.fit.lr}), raise "
            f"{self.job.section}.warmup ({self.fit.warmup}), or set {self.job.section}.amp to off ({self.fit.amp})"
        )

    def _report(self, step: int, **metrics: float) -> None:
        if not ranks.is_main():
            return
        part, parts = self.job.part
        total = self.fit.epochs * self.steps
        here = self.epoch * self.steps + step
        done = part * total + here
        lr = learning_rate(self.fit, here, total)
        events.report(
            self.job.what, done=done, total=parts * total, step=done, epoch=here / self.steps, lr=lr, **metrics
        )


def _seed(seed: int, epoch: int) -> None:
    """Seed every source of chance that a network or a loss may draw from by seed, epoch and process.

    Views are none of it: they follow from the row (`RowGenerator`).
    """
    drawn = int(np.random.SeedSequence([seed, epoch, ranks.rank()]).generate_state(1)[0])
    torch.manual_seed(drawn)
    np.random.seed(drawn)
    random.seed(drawn)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
