"""The training loop behind teacher, student and recovery: one `TrainingJob`, run by one process or by many.

`run` is what every process calls (see `pipeline.training.distributed.launch`). After each epoch the state goes to a snapshot; a job
that is run again goes on from there and, in one process on a CPU, ends with the very same weights. The epoch that is kept
is the best on the validation split; the test split is never opened here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compression.quantization import fake_quant
from pipeline.compression.quantization.fake_quant import FakeQuant
from pipeline.data.shards import Split, open_split
from pipeline.data.views import augment
from pipeline.errors import SettingsError
from pipeline.files import sha256
from pipeline.models import checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.progress import events
from pipeline.settings.base import Component
from pipeline.settings.training import Fit
from pipeline.training import snapshot, teacher_answers
from pipeline.training.distributed import ranks
from pipeline.training.onednn import safe_convolutions

HISTORY_FILE = "history.json"
_SNAPSHOT_FILE = "snapshot.safetensors"
_EVALUATION_BATCH = 500
_CHECK_STEPS = 10
_REMEMBERED_BYTES = 1 << 28  # of the teacher's answers; a data set with more of them asks anew in each step
_REPORT_SECONDS = 1.0
_log = logging.getLogger(__name__)


class TrainingJob(BaseModel):
    """What to train and how: all that a worker process is told."""

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
    hold_zeros: bool = False
    """Whether weights that are zero in `start` stay zero."""
    fake_quant: FakeQuant | None = None
    """What the network rounds while it trains, to be quantized afterwards; needs `start`, and leaves `ranges.json` too."""
    part: tuple[int, int] = (0, 1)
    """Which of how many trainings of its stage this is, so that progress counts all of them."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that the weights depend on, so that a snapshot of another job is never taken up."""
        told = self.model_dump(mode="json", exclude={"what", "scratch", "out", "part", "data", "start", "teacher"})
        read = [path and sha256(path / checkpoint.WEIGHTS_FILE) for path in (self.start, self.teacher)]
        read.append(sha256(self.data / "manifest.json"))
        return hashlib.sha256(json.dumps([told, read], sort_keys=True).encode()).hexdigest()


def run(job: Mapping[str, Any]) -> None:
    """Train as one process of possibly many; the main one writes the result. `job` is a `TrainingJob` as JSON."""
    torch.set_flush_denormal(True)
    training = _Training(TrainingJob.model_validate(job))
    training.resume()
    training.ask_teacher()
    while training.epoch < training.fit.epochs:
        training.run_epoch()
    if ranks.is_main():
        training.write()


def steps_an_epoch(fit: Fit, images: int) -> int:
    """Return how many whole batches `images` give; what is left over differs from epoch to epoch."""
    return images // fit.batch_size


def check_batch(section: str, fit: Fit, images: int, processes: int) -> None:
    """Raise `SettingsError` unless `images` fill a batch that `processes` can share evenly."""
    if fit.batch_size > images:
        raise SettingsError(
            f"{section}.batch_size is {fit.batch_size}, but there are {images} training images: choose at most that many"
        )
    if fit.batch_size % processes:
        raise SettingsError(
            f"{section}.batch_size is {fit.batch_size}, which {processes} processes cannot share evenly: "
            f"choose a multiple of {processes}, or another distributed.nproc"
        )


def my_batches(images: int, batch_size: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return (steps, batch_size / processes) indices: this process's share of every batch of a freshly shuffled epoch.

    Every process shuffles alike and takes its own slice, so that together they see each image at most once.
    """
    order = np.random.default_rng([seed, epoch]).permutation(images)
    steps = images // batch_size
    batches = order[: steps * batch_size].reshape(steps, ranks.world(), -1)
    return batches[:, ranks.rank()]


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


def make_optimizer(network: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay spares biases and batch norms, which are the vectors among the weights."""
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": fit.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if fit.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=fit.lr)
    return torch.optim.SGD(groups, lr=fit.lr, momentum=0.9, nesterov=True)


@torch.inference_mode()
def evaluate(network: nn.Module, spec: ModelSpec, split: Split) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of `network` on `split` in float32, each process looking at its share."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for indices in np.array_split(np.arange(len(split)), math.ceil(len(split) / _EVALUATION_BATCH))[
        ranks.rank() :: ranks.world()
    ]:
        logits = network(_to_input(torch.from_numpy(split.batch(indices)), spec, device)).float()
        labels = torch.from_numpy(split.labels[indices]).to(device)
        sums[0] += (logits.argmax(1) == labels).sum()
        sums[1] += F.cross_entropy(logits, labels, reduction="sum")
    network.train(was_training)
    correct, loss = (ranks.total(sums) / len(split)).tolist()
    return correct, loss


class _Training:
    """A job under way."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.fit = job, job.fit
        self.device = ranks.device()
        self.train, self.validation = open_split(job.data, "train"), open_split(job.data, "validation")
        check_batch(job.section, job.fit, len(self.train), ranks.world())
        self.labels = torch.from_numpy(self.train.labels)
        torch.manual_seed(job.seed)
        network = checkpoint.load(job.start)[1] if job.start else checkpoint.build(job.spec)
        if job.fake_quant is not None:
            network = fake_quant.simulate(job.spec, network, job.fake_quant)
        self.network = self._place(network).train()
        self.held = _nonzero(self.network) if job.hold_zeros else {}
        self.shared = ranks.share(self.network, job.strategy)
        self.average = copy.deepcopy(self.network).requires_grad_(False) if job.fit.ema_decay else None
        self.teacher = self._place(checkpoint.load(job.teacher)[1]).requires_grad_(False) if job.teacher else None
        self.taught: Tensor | None = None
        self.loss = job.loss.build("losses") if job.loss else None
        self.optimizer = make_optimizer(self.network, job.fit)
        self.bf16 = job.fit.amp == "bf16" and has_bf16(self.device)
        if job.fit.amp == "bf16" and not self.bf16 and ranks.is_main():
            _log.warning(
                "%s.amp is bf16, which %s has no instructions for: training in float32", job.section, self.device
            )
        self.steps = steps_an_epoch(job.fit, len(self.train))
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_accuracy = -1.0

    def run_epoch(self) -> None:
        """One pass over the training images, a look at the validation images, and a snapshot."""
        generator = self._seed_epoch()
        batches = my_batches(len(self.train), self.fit.batch_size, self.epoch, self.job.seed)
        begun = reported = time.perf_counter()
        reported_step = 0
        losses = torch.zeros(self.steps, device=self.device)
        for step, rows in enumerate(batches):
            losses[step] = self._step(rows, self.epoch * self.steps + step, generator)
            if (step + 1) % _CHECK_STEPS == 0 or step + 1 == self.steps:
                self._check(losses[: step + 1])
                now = time.perf_counter()
                if now - reported >= _REPORT_SECONDS:
                    speed = (step + 1 - reported_step) * self.fit.batch_size / (now - reported)
                    self._report(step + 1, loss=float(losses[reported_step : step + 1].mean()), images_per_second=speed)
                    reported, reported_step = now, step + 1
        seconds = time.perf_counter() - begun
        ranks.mean_(buffer for buffer in self.network.buffers() if buffer.is_floating_point())
        if self.average is not None:
            ranks.mean_(buffer for buffer in self.average.buffers() if buffer.is_floating_point())
        self.epoch += 1
        self._judge(float(ranks.total(losses.mean()) / ranks.world()), seconds)
        if ranks.is_main():
            self._snapshot()

    def write(self) -> None:
        """Write the best epoch's checkpoint and the history."""
        self.network.load_state_dict(self.best)
        self.job.out.mkdir(parents=True, exist_ok=True)
        (self.job.out / HISTORY_FILE).write_text(json.dumps(self.history, indent=2) + "\n", encoding="utf-8")
        network = self.network
        if self.job.fake_quant is not None and self.job.start is not None:
            network = fake_quant.trained(self.network.cpu(), checkpoint.load(self.job.start)[1])
            learned = json.dumps(fake_quant.ranges(self.network), indent=2)
            (self.job.out / fake_quant.RANGES_FILE).write_text(learned + "\n", encoding="utf-8")
        checkpoint.save(self.job.out, self.job.spec, network)

    def resume(self) -> None:
        """Take up the snapshot of this very job, if there is one."""
        found = snapshot.load(self.job.scratch / _SNAPSHOT_FILE)
        if found is None or found[1]["fingerprint"] != self.job.fingerprint:
            return
        tensors, state = found
        self.network.load_state_dict(_under("network", tensors))
        if self.average is not None:
            self.average.load_state_dict(_under("average", tensors))
        self.best = _under("best", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer", tensors).items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch, self.history, self.best_accuracy = state["epoch"], state["history"], state["best_accuracy"]

    def _step(self, rows: NDArray[np.int64], step: int, generator: torch.Generator) -> Tensor:
        """Learn from the images at `rows`; return the loss."""
        images = torch.from_numpy(self.train.batch(rows)).to(self.device, non_blocking=True)
        labels = self.labels[rows].to(self.device, non_blocking=True)
        images = augment.crop_and_flip(images, self.fit.crop_padding, self.fit.horizontal_flip, generator)
        view = augment.erase(_to_input(images, self.job.spec, self.device), self.fit.random_erasing, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.fit, step, self.fit.epochs * self.steps)
        with safe_convolutions(self.network, self.device):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.shared(view)
            if self.loss is not None:
                taught = self._teach(view) if self.taught is None else self.taught[rows]
                loss = self.loss(logits.float(), taught, labels)
            else:
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.fit.label_smoothing)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for weight, mask in self.held.items():
                weight.mul_(mask)
        if self.average is not None:
            follow_(self.average, self.network, min(self.fit.ema_decay, (step + 1) / (step + 10)))
        return loss.detach()

    @torch.no_grad()
    def _teach(self, view: Tensor) -> Tensor:
        """Return the teacher's logits for the very `view` that the student sees."""
        assert self.teacher is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.teacher(view).float()

    def ask_teacher(self) -> None:
        """Where every epoch shows the same views, have the teacher answer each of them once, and remember that.

        Each process asks about its share of the images; afterwards all know all of the answers, and so does the next
        training with this teacher.
        """
        fit, images, classes = self.fit, len(self.train), len(self.job.spec.labels)
        changing = fit.crop_padding or fit.horizontal_flip or fit.random_erasing
        if self.job.teacher is None or changing or 4 * images * classes > _REMEMBERED_BYTES:
            return
        file = teacher_answers.file(
            self.job.teacher, self.job.data, f"{self.device.type} {'bf16' if self.bf16 else 'float32'}"
        )
        known = ranks.total(torch.tensor(float(file.exists()), device=self.device))
        if known == ranks.world():  # one that does not see the file must not be left alone with asking
            self.taught = teacher_answers.load(file).to(self.device)
            return
        taught = torch.zeros(images, classes, device=self.device)
        starts = range(ranks.rank() * _EVALUATION_BATCH, images, ranks.world() * _EVALUATION_BATCH)
        for place, start in enumerate(starts):
            rows = np.arange(start, min(start + _EVALUATION_BATCH, images))
            view = _to_input(torch.from_numpy(self.train.batch(rows)), self.job.spec, self.device)
            taught[rows] = self._teach(view)
            if ranks.is_main():
                events.report(f"{self.job.what}: the teacher's answers", done=place + 1, total=len(starts))
        self.taught = ranks.total(taught)
        if ranks.is_main():
            teacher_answers.save(file, self.taught)

    def _judge(self, train_loss: float, seconds: float) -> None:
        """Evaluate what would be kept, and keep it if it is the best so far."""
        kept = self.network if self.average is None else self.average
        accuracy, loss = evaluate(kept, self.job.spec, self.validation)
        speed = self.steps * self.fit.batch_size / seconds
        numbers = {"train_loss": train_loss, "validation_loss": loss, "validation_accuracy": accuracy}
        self.history.append({"epoch": self.epoch, **numbers, "seconds": seconds, "images_per_second": speed})
        self._report(0, **numbers)
        if accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in kept.state_dict().items()}

    def _snapshot(self) -> None:
        """Write everything that the next epoch depends on; random numbers do not: each epoch seeds its own."""
        tensors = _prefixed("network", self.network.state_dict()) | _prefixed("best", self.best)
        if self.average is not None:
            tensors |= _prefixed("average", self.average.state_dict())
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"optimizer.{index}", moments)
        state = {
            "fingerprint": self.job.fingerprint,
            "epoch": self.epoch,
            "history": self.history,
            "best_accuracy": self.best_accuracy,
        }
        self.job.scratch.mkdir(parents=True, exist_ok=True)
        snapshot.save(self.job.scratch / _SNAPSHOT_FILE, tensors, state)

    def _seed_epoch(self) -> torch.Generator:
        """Seed every source of chance by seed, epoch and process; return the one that augmentation draws from."""
        seed = int(np.random.SeedSequence([self.job.seed, self.epoch, ranks.rank()]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return torch.Generator().manual_seed(seed)

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

    def _place(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _nonzero(network: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Return a mask of every weight that has zeros; biases and batch norms, the vectors, are left out."""
    return {weight: weight != 0 for weight in network.parameters() if weight.ndim > 1 and bool((weight == 0).any())}


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; elsewhere it would be slower than float32, not faster."""
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("bf16"))
    return torch.cuda.is_bf16_supported(including_emulation=False)


@torch.no_grad()
def follow_(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move every float of `average` towards `network`: ``decay * average + (1 - decay) * network``; copy the rest."""
    for mine, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1.0 - decay)
        else:
            mine.copy_(theirs)


def _to_input(images: Tensor, spec: ModelSpec, device: torch.device) -> Tensor:
    return checkpoint.normalise(spec, images.to(device)).contiguous(memory_format=torch.channels_last)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
