"""Candidates in this process: which files and images there are, what the files answer, how fast they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.evaluation.quality import qualities
from pipeline.machine.cpu import cores
from pipeline.progress.events import report
from pipeline.protocols import Runner
from pipeline.records.candidates import Candidate, Candidates
from pipeline.records.evaluation import TEACHER, Measured
from pipeline.records.measures import Offline
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.runner import TorchRunner
from pipeline.runners.timing import time_runners
from pipeline.settings.gate import Evaluate

if TYPE_CHECKING:
    from pipeline.data.split import Split

Images: TypeAlias = NDArray[np.uint8]
Logits: TypeAlias = NDArray[np.float32]
"""(images, classes)"""


@dataclass(frozen=True)
class Subjects:
    """What is measured, and on what."""

    listed: Candidates
    directory: Path
    """Where the candidates' files are."""
    checkpoints: Mapping[str, Path]
    """Float candidate -> its PyTorch checkpoint."""
    splits: Mapping[str, Split]
    sample: NDArray[np.int64]
    """Some validation images, as indices."""

    @property
    def for_this_cpu(self) -> tuple[Candidate, ...]:
        """The candidates that are not for a GPU's TensorRT alone."""
        return tuple(one for one in self.listed.candidates if one.target != "tensorrt")

    @property
    def sample_images(self) -> Images:
        """The images of `sample`, (n, C, H, W)."""
        return self.splits["validation"].batch(self.sample)

    def runner(self, candidate: Candidate, threads: int = 1) -> OnnxRunner:
        """Return `candidate` in ONNX Runtime."""
        return OnnxRunner(self.directory / candidate.file, threads)


@dataclass
class Answers:
    """Logits of every candidate for every split, and why some are missing."""

    logits: dict[str, dict[str, Logits]] = field(default_factory=dict)
    """Candidate -> split -> logits."""
    missing: dict[str, str] = field(default_factory=dict)
    """Candidate -> why it has none."""


def answer_all(subjects: Subjects) -> Answers:
    """Let every candidate answer every image of every split, in ONNX Runtime on all cores.

    A graph written for TensorRT may be one that ONNX Runtime refuses: then its answers are missing, and why is noted.
    """
    answers = Answers()
    total = len(subjects.listed.candidates) * sum(len(split) for split in subjects.splits.values())
    done = 0
    for candidate in subjects.listed.candidates:
        try:
            runner = subjects.runner(candidate, threads=cores())
        except ModelError as error:
            if candidate.target != "tensorrt":
                raise
            answers.missing[candidate.name] = f"not evaluated: {error}"
            continue
        answers.logits[candidate.name] = {}
        for name, split in subjects.splits.items():
            answers.logits[candidate.name][name] = answer(runner, {"image": split})["logits"]
            done += len(split)
            report("answers", done=done, total=total)
        runner.close()
    return answers


def on_sample(subjects: Subjects, answers: Answers) -> dict[str, Logits]:
    """Return the logits of every candidate that answers for the sample, in its order."""
    return {name: by["validation"][subjects.sample] for name, by in answers.logits.items()}


def measure(config: Evaluate, subjects: Subjects, answers: Answers, seed: int) -> tuple[Measured, ...]:
    """Return how right every candidate is, how like PyTorch and, in this process, how fast; `seed` is of the bootstrap."""
    agreement, offline = agree_with_torch(subjects, answers), time_offline(config, subjects)
    labels = {name: split.labels for name, split in subjects.splits.items()}
    return tuple(
        Measured(
            **one.model_dump(exclude={"parity"}),
            **qualities(
                labels,
                answers.logits.get(one.name, {}),
                None if one.name == TEACHER else answers.logits[TEACHER],
                config,
                seed,
            ),
            export_parity=one.parity.model_dump(),
            torch_agreement=agreement.get(one.name),
            offline=offline["onnxruntime"].get(one.name, {}),
            offline_torch=offline["torch"].get(one.name, {}),
            note=answers.missing.get(one.name),
        )
        for one in subjects.listed.candidates
    )


def agree_with_torch(subjects: Subjects, answers: Answers) -> dict[str, float]:
    """Return, for each float candidate, the share of the sample that PyTorch and ONNX Runtime answer alike."""
    images, onnx = subjects.sample_images, on_sample(subjects, answers)
    agreement = {}
    for name, directory in subjects.checkpoints.items():
        runner = TorchRunner(directory, threads=cores())
        logits = answer(runner, {"image": images})["logits"]
        runner.close()
        agreement[name] = float((logits.argmax(axis=1) == onnx[name].argmax(axis=1)).mean())
    return agreement


def time_offline(config: Evaluate, subjects: Subjects) -> dict[str, dict[str, dict[int, Offline]]]:
    """Time every candidate that is meant for this CPU on one thread; "onnxruntime" or "torch" -> candidate -> batch."""
    runners: dict[str, Runner] = {f"onnxruntime:{one.name}": subjects.runner(one) for one in subjects.for_this_cpu}
    runners |= {f"torch:{name}": TorchRunner(path) for name, path in subjects.checkpoints.items()}
    timed: dict[str, dict[str, dict[int, Offline]]] = {"onnxruntime": {}, "torch": {}}
    images = subjects.sample_images
    for place, batch in enumerate(config.offline_batches):
        found = time_runners(runners, images, batch, config.offline_seconds, confidence=config.confidence)
        for key, offline in found.items():
            runtime, _, name = key.partition(":")
            timed[runtime].setdefault(name, {})[batch] = offline
        report("offline timing", done=place + 1, total=len(config.offline_batches))
    for runner in runners.values():
        runner.close()
    return timed


def save_answers(file: Path, subjects: Subjects, answers: Answers) -> None:
    """Write labels and logits as ``<split>_labels`` and ``<candidate>_<split>``: an .npz without pickle."""
    arrays: dict[str, NDArray[Any]] = {f"{split}_labels": found.labels for split, found in subjects.splits.items()}
    arrays |= {f"{name}_{split}": logits for name, by in answers.logits.items() for split, logits in by.items()}
    np.savez_compressed(file, allow_pickle=False, **arrays)


def draw(total: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Return up to `wanted` indices below `total`, without repeats, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:wanted])
