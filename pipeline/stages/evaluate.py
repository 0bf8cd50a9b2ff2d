"""Measure every candidate and hold it to the budget: the gate.

Answers to all validation and test images, speed in this process, speed through the live Triton server, then the
verdict. Leaves evaluation.json, verdict.json, predictions.npz (labels and logits), golden.safetensors and plots/*.png.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pipeline.data.shards import Split, open_split
from pipeline.errors import BudgetError, ModelError
from pipeline.evaluation import gate
from pipeline.evaluation.quality import quality
from pipeline.machine import cpu
from pipeline.models.spec import load_spec
from pipeline.progress.events import report
from pipeline.protocols import Metrics, Runner
from pipeline.records.candidates import Candidate, Candidates, load_candidates, load_engines
from pipeline.records.evaluation import (
    GOLDEN_FILE,
    TEACHER,
    Evaluation,
    Host,
    Measured,
    Offline,
    Parity,
    Served,
    Verdict,
    save,
)
from pipeline.report import plots
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.runner import TorchRunner
from pipeline.runners.timing import time_runners
from pipeline.serving.load import measure
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.golden import TOLERANCE
from pipeline.serving.triton.repository import Artifact
from pipeline.serving.triton.temporary import temporary_models
from pipeline.settings.gate import Budget, Evaluate
from pipeline.settings.serving import Serving

PREDICTIONS_FILE = "predictions.npz"
GOLDEN_IMAGES = 64
SPLITS = ("validation", "test")
_BATCH = 128
_SAMPLE = 1000
"""Validation images that PyTorch answers as well, that timings take turns over and that the load generator sends."""
_PARITY_IMAGES = 64
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


@dataclass(frozen=True)
class Load:
    """What the live server did with one candidate."""

    served: Mapping[int, Served]
    """By concurrency."""
    answers: Logits
    """To the first images of the sample."""


@dataclass(frozen=True)
class Loads:
    """What the live server did with all of them."""

    server: str
    """Its version."""
    candidates: Mapping[str, Load]


Serve: TypeAlias = Callable[[Evaluate, Serving, Subjects, Sequence[Candidate]], Loads]


def evaluate(
    config: Evaluate,
    *,
    data: Path,
    teacher: Path,
    student: Path,
    pruned: Path,
    candidates: Path,
    engines: Path,
    budget: Budget,
    serving: Serving,
    seed: int,
    out: Path,
    serve: Serve | None = None,
) -> Metrics:
    """Measure all candidates, write everything down, decide.

    Args:
        config: what is measured, and for how long.
        data: prepared data.
        teacher: checkpoint directory of the teacher.
        student: checkpoint directory of the float proxy.
        pruned: checkpoint directory of the pruned proxy.
        candidates: directory of candidates.json and the ONNX files.
        engines: directory of engines.json.
        budget: what the user can afford.
        serving: how Triton serves each candidate while it is measured.
        seed: of resampling and of the images that are drawn.
        out: empty directory for the results.
        serve: measures candidates through a live server: `through_triton`, unless a test stands in for it.

    Raises:
        BudgetError: no candidate is inside the budget; everything has been written by then.
    """
    splits = {name: open_split(data, name) for name in SPLITS}
    subjects = Subjects(
        listed=load_candidates(candidates),
        directory=candidates,
        checkpoints={"teacher": teacher, "student": student, "pruned": pruned},
        splits=splits,
        sample=_draw(len(splits["validation"]), _SAMPLE, seed),
    )
    answers = answer(subjects)
    torch_agreement = agree_with_torch(subjects, answers)
    offline = time_offline(config, subjects, answers)
    servable = [one for one in subjects.listed.candidates if one.target != "tensorrt"]
    loads = (serve or through_triton)(config, serving, subjects, servable)
    evaluation = Evaluation(
        labels=subjects.listed.labels,
        confidence=config.confidence,
        candidates=tuple(
            _measured(config, seed, one, subjects, answers, torch_agreement, offline, loads)
            for one in subjects.listed.candidates
        ),
        host=host(loads.server),
        engines=load_engines(engines).model_dump(mode="json", exclude_defaults=True),
    )
    verdict = gate.decide(evaluation.teacher, evaluation.candidates, budget, config.confidence)
    _write(out, subjects, answers, evaluation, verdict, seed)
    metrics = flat_metrics(evaluation)
    report("verdict", done=1, total=1, step=0, **metrics)  # an INFEASIBLE run shows its numbers too
    if verdict.verdict == "INFEASIBLE":
        raise BudgetError(verdict.sentence)
    return metrics


def answer(subjects: Subjects) -> Answers:
    """Let every candidate answer every validation and test image, in ONNX Runtime on all cores.

    A graph written for TensorRT may be one that ONNX Runtime refuses: then its answers are missing, and why is noted.
    """
    answers = Answers()
    total = len(subjects.listed.candidates) * sum(len(split) for split in subjects.splits.values())
    done = 0
    for candidate in subjects.listed.candidates:
        try:
            runner = subjects.runner(candidate, threads=_cores())
        except ModelError as error:
            if candidate.target != "tensorrt":
                raise
            answers.missing[candidate.name] = f"not evaluated: {error}"
            continue
        answers.logits[candidate.name] = {}
        for name, split in subjects.splits.items():
            answers.logits[candidate.name][name] = _predict(runner, split)
            done += len(split)
            report("answers", done=done, total=total)
        runner.close()
    return answers


def agree_with_torch(subjects: Subjects, answers: Answers) -> dict[str, float]:
    """Return, for each float candidate, the share of the sample that PyTorch and ONNX Runtime answer alike."""
    images = subjects.sample_images
    agreement = {}
    for name, directory in subjects.checkpoints.items():
        runner = TorchRunner(directory, threads=_cores())
        batches = [runner({"image": images[at : at + _BATCH]})["logits"] for at in range(0, len(images), _BATCH)]
        runner.close()
        same = np.concatenate(batches).argmax(axis=1) == _sampled(subjects, answers, name).argmax(axis=1)
        agreement[name] = float(same.mean())
    return agreement


def time_offline(config: Evaluate, subjects: Subjects, answers: Answers) -> dict[str, dict[str, dict[int, Offline]]]:
    """Time every candidate that is meant for this CPU on one thread; "onnxruntime" or "torch" -> candidate -> batch."""
    files = [one for one in subjects.listed.candidates if one.target != "tensorrt"]
    runners: dict[str, Runner] = {f"onnxruntime:{one.name}": subjects.runner(one) for one in files}
    runners |= {f"torch:{name}": TorchRunner(path) for name, path in subjects.checkpoints.items()}
    timed: dict[str, dict[str, dict[int, Offline]]] = {"onnxruntime": {}, "torch": {}}
    for place, batch in enumerate(config.offline_batches):
        found = time_runners(runners, subjects.sample_images, batch, config.offline_seconds)
        for key, offline in found.items():
            runtime, _, name = key.partition(":")
            timed[runtime].setdefault(name, {})[batch] = offline
        report("offline timing", done=place + 1, total=len(config.offline_batches))
    for runner in runners.values():
        runner.close()
    return timed


def through_triton(config: Evaluate, serving: Serving, subjects: Subjects, candidates: Sequence[Candidate]) -> Loads:
    """Load all candidates into the live server under temporary names and measure them in turns.

    Every candidate is served as the winner would be: same backend, same instances, same batching.
    Raises `PromotionError` where one cannot be loaded, `TritonError` where the server cannot be reached, and
    `RuntimeError` where it answers nothing.
    """
    artifacts = [
        Artifact(file, load_spec(file.parent), one.sha256, one.name)
        for one in candidates
        for file in [subjects.directory / one.file]
    ]
    images = subjects.sample_images
    served: dict[str, dict[int, Served]] = {one.name: {} for one in candidates}
    with Client() as client, temporary_models(serving, artifacts, client) as names:
        few = images[: min(_PARITY_IMAGES, serving.max_batch_size)]
        answers = {name: client.predict(model, few) for name, model in names.items()}
        turns = [(level, name) for level in config.concurrency for name in names]
        for place, (level, name) in enumerate(turns):
            found = measure.measure(names[name], "", images, level, config.load_seconds)
            if found.throughput == 0:
                errors = ", ".join(f"{count} x {status}" for status, count in found.errors.items())
                raise RuntimeError(
                    f"Triton answered none of {found.requests} requests to {name} with {level} in flight within "
                    f"evaluate.load_seconds = {config.load_seconds:g} s ({errors or 'no errors'}); see its log"
                )
            served[name][level] = Served(
                throughput=found.throughput,
                p50_ms=found.p50_ms,
                p99_ms=found.p99_ms,
                requests=found.requests,
                failures=found.failures,
                client_cpu=found.client_cpu,
            )
            report("load through Triton", done=place + 1, total=len(turns))
        return Loads(client.server_version(), {name: Load(served[name], answers[name]) for name in names})


def host(server: str | None) -> Host:
    """Return what the measured times belong to."""
    found = cpu.describe()
    return Host(
        cpu=found.model,
        cores=_cores(),
        flags=found.flags,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        torch=torch.__version__,
        triton=server,
    )


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers that runs are compared by, named ``<candidate>_<measure>``."""
    teacher, metrics = evaluation.teacher, dict[str, float]()
    for one in evaluation.candidates:
        found: dict[str, float] = {"size_bytes": one.size_bytes, "parameters": one.parameters, "macs": one.macs}
        found["size_ratio"] = teacher.size_bytes / one.size_bytes
        for split in (one.validation, one.test):
            name = "test" if split is one.test else "validation"
            if split:
                found |= {f"{name}_accuracy": split.accuracy.value, f"{name}_ece": split.ece, f"{name}_nll": split.nll}
                found |= {f"{name}_agreement": split.agreement, f"{name}_churn": split.churn}
            if split and split.drop:
                found |= {f"{name}_drop": split.drop.value, f"{name}_drop_upper": split.drop.high}
        for batch, offline in one.offline.items():
            found[f"offline_images_per_second_b{batch}"] = offline.images_per_second
            found[f"offline_p99_ms_b{batch}"] = offline.p99_ms
        for level, served in one.served.items():
            found[f"served_throughput_c{level}"] = served.throughput
            found[f"served_p99_ms_c{level}"] = served.p99_ms
        if one.offline:
            batch = max(one.offline)
            found["speedup"] = one.offline[batch].images_per_second / teacher.offline[batch].images_per_second
        if one.served:
            level = max(one.served)
            found["served_speedup"] = one.served[level].throughput / teacher.served[level].throughput
        metrics |= {f"{one.name}_{key}": float(value) for key, value in found.items()}
    return metrics


def _measured(
    config: Evaluate,
    seed: int,
    candidate: Candidate,
    subjects: Subjects,
    answers: Answers,
    torch_agreement: Mapping[str, float],
    offline: Mapping[str, Mapping[str, dict[int, Offline]]],
    loads: Loads,
) -> Measured:
    """Put together all that is known of one candidate."""
    name = candidate.name
    under_load = loads.candidates.get(name)
    qualities = {
        split: quality(
            subjects.splits[split].labels,
            logits,
            None if name == TEACHER else answers.logits[TEACHER][split],
            confidence=config.confidence,
            resamples=config.bootstrap,
            seed=seed,
        )
        for split, logits in answers.logits.get(name, {}).items()
    }
    return Measured(
        **candidate.model_dump(exclude={"parity"}),
        export_parity=candidate.parity.model_dump(),
        torch_agreement=torch_agreement.get(name),
        validation=qualities.get("validation"),
        test=qualities.get("test"),
        offline=offline["onnxruntime"].get(name, {}),
        offline_torch=offline["torch"].get(name, {}),
        served=under_load.served if under_load else {},
        served_parity=_parity(under_load.answers, _sampled(subjects, answers, name)) if under_load else None,
        note=answers.missing.get(name),
    )


def _parity(served: Logits, here: Logits) -> Parity:
    """Compare the server's answers to the first images of the sample with those of the same file in this process."""
    here = here[: len(served)]
    close = np.isclose(served, here, rtol=TOLERANCE, atol=TOLERANCE).all(axis=1)
    return Parity(images=len(served), max_difference=float(np.abs(served - here).max()), differing=int(np.sum(~close)))


def _write(
    out: Path, subjects: Subjects, answers: Answers, evaluation: Evaluation, verdict: Verdict, seed: int
) -> None:
    save(out, evaluation)
    save(out, verdict)
    arrays: dict[str, NDArray[Any]] = {f"{split}_labels": found.labels for split, found in subjects.splits.items()}
    arrays |= {f"{name}_{split}": logits for name, by in answers.logits.items() for split, logits in by.items()}
    np.savez_compressed(out / PREDICTIONS_FILE, allow_pickle=False, **arrays)
    validation = subjects.splits["validation"]
    golden = validation.batch(_draw(len(validation), GOLDEN_IMAGES, seed + 1))
    save_file({"images": np.ascontiguousarray(golden)}, out / GOLDEN_FILE)
    for name, figure in plots.all_plots(evaluation, verdict).items():
        plots.png(figure, out / "plots" / f"{name}.png")


def _predict(runner: Runner, split: Split) -> Logits:
    batches = [
        runner({"image": split.slice(start, start + _BATCH)})["logits"] for start in range(0, len(split), _BATCH)
    ]
    return np.concatenate(batches)


def _sampled(subjects: Subjects, answers: Answers, name: str) -> Logits:
    return answers.logits[name]["validation"][subjects.sample]


def _draw(total: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Return up to `wanted` indices below `total`, without repeats, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:wanted])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
