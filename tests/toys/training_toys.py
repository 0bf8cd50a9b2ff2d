"""Components that only tests name, as ``training_toys:Plain``."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from pipeline.settings.base import Component
from pipeline.settings.training import Distributed, Fit, Train


@contextlib.contextmanager
def in_one_process() -> Iterator[None]:
    """Train in the test's own process instead of under torchrun."""
    from pipeline.training import job

    with (
        mock.patch("pipeline.training.fit.launch", lambda function, the_job, settings, scratch: job.run(the_job)),
        mock.patch("pipeline.training.fit.processes", lambda settings: 1),
    ):
        yield


def trained_once(data: Path, root: Path, fit: Fit) -> Path:
    """A small network that `train` has trained on `data`: its checkpoint, below `root`."""
    from pipeline.stages.train import train

    config = Train(model=Component(name="resnet", width=8, blocks=[1, 1]), fit=fit)
    with in_one_process():
        train(config, data=data, distributed=Distributed(), seed=1, out=root / "out", scratch=root / "scratch")
    return root / "out"


class Plain(nn.Module):
    """No batch norm and no dropout: answers alike in training and in evaluation."""

    def __init__(self, in_channels: int, classes: int, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 4)
        return self.head(torch.flatten(x, 1))


class Broken(Plain):
    """Divides by nothing."""

    def forward(self, x):
        return super().forward(x) / 0.0


class Eigen(nn.Module):
    """Something that ONNX has no operator for."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()

    def forward(self, x):
        return torch.linalg.eigh(x[:, 0]).eigenvalues


class LearnedTemperature(nn.Module):
    """A distillation loss with a vector, a matrix, a float buffer and a counter, all of which its value depends on.

    What it begins with differs from process to process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor([1.0 + random.SystemRandom().random() / 10]))
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.projection = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, student_logits, teacher_logits, labels):
        self.calls += 1
        self.mean.lerp_(student_logits.detach().abs().mean(), 0.1)
        temperature = self.log_temperature.exp()
        student = nn.functional.log_softmax(self.projection(student_logits) / temperature, 1)
        teacher = nn.functional.softmax(teacher_logits / temperature, 1)
        soft = nn.functional.kl_div(student, teacher, reduction="batchmean")
        hard = nn.functional.cross_entropy(student_logits, labels)
        return hard + soft * (1.0 + 0.1 * self.mean) / (1.0 + 0.01 * self.calls)


class FixedStart(LearnedTemperature):
    """The same, but each begins alike."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.ones_(self.log_temperature)


class Difference:
    """A loss that is no module."""

    def __call__(self, student_logits, teacher_logits, labels):
        return (student_logits - teacher_logits).abs().mean()


def files(directory):
    """The paths of all files in a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
