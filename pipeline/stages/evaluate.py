"""Measure every candidate and hold it to the budget: the gate.

Answers to all validation and test images, speed in this process, speed through the live Triton server, then the
verdict. Leaves evaluation.json, verdict.json, predictions.npz (labels and logits), golden.safetensors and plots/*.png.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pipeline.data.shards import open_split
from pipeline.errors import BudgetError
from pipeline.evaluation import gate
from pipeline.evaluation.figures import flat_metrics
from pipeline.evaluation.quality import parity, quality
from pipeline.models.spec import load_spec
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.candidates import Candidate, load_candidates, load_engines
from pipeline.records.evaluation import GOLDEN_FILE, TEACHER, Evaluation, Measured, save_evaluation
from pipeline.records.verdict import save_verdict
from pipeline.report import plots
from pipeline.runners.candidates import Answers, Subjects, agree_with_torch, answer_all, time_offline
from pipeline.runners.host import host
from pipeline.serving.load.candidates import Loads, measure_candidates
from pipeline.serving.triton.golden import TOLERANCE
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.schema import Budget, Evaluate, Serving

PREDICTIONS_FILE = "predictions.npz"
GOLDEN_IMAGES = 64
SPLITS = ("validation", "test")
_SAMPLE = 1000
"""Validation images that PyTorch answers as well, that timings take turns over and that the load generator sends."""
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
    answers = answer_all(subjects)
    torch_agreement = agree_with_torch(subjects, answers)
    offline = time_offline(config, subjects)
    servable = [one for one in subjects.listed.candidates if one.target != "tensorrt"]
    loads = (serve or through_triton)(config, serving, subjects, servable)
    evaluation = Evaluation(
        labels=subjects.listed.labels,
        confidence=config.confidence,
        candidates=tuple(
            _measured(config, seed, one, subjects, answers, loads).model_copy(
                update={
                    "torch_agreement": torch_agreement.get(one.name),
                    "offline": offline["onnxruntime"].get(one.name, {}),
                    "offline_torch": offline["torch"].get(one.name, {}),
                }
            )
            for one in subjects.listed.candidates
        ),
        host=host(loads.server),
        engines=load_engines(engines).model_dump(mode="json", exclude_defaults=True),
    )
    verdict = gate.decide(evaluation.teacher, evaluation.candidates, budget, config.confidence)
    save_evaluation(out, evaluation)
    save_verdict(out, verdict)
    _write_answers(out, subjects, answers, seed)
    for name, figure in plots.all_plots(evaluation, verdict).items():
        plots.png(figure, out / "plots" / f"{name}.png")
    metrics = flat_metrics(evaluation)
    report("verdict", done=1, total=1, step=0, **metrics)  # an INFEASIBLE run shows its numbers too
    if verdict.verdict == "INFEASIBLE":
        raise BudgetError(verdict.sentence)
    return metrics


def through_triton(config: Evaluate, serving: Serving, subjects: Subjects, candidates: Sequence[Candidate]) -> Loads:
    """Measure all candidates through the live server: see `measure_candidates`."""
    files = [(subjects.directory / one.file, one) for one in candidates]
    artifacts = [Artifact(file, load_spec(file.parent), one.sha256, one.name) for file, one in files]
    return measure_candidates(config, serving, artifacts, subjects.sample_images)


def _measured(
    config: Evaluate, seed: int, candidate: Candidate, subjects: Subjects, answers: Answers, loads: Loads
) -> Measured:
    """Put together what was answered, here and through the server."""
    load, name = loads.candidates.get(candidate.name), candidate.name
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
        **qualities,
        export_parity=candidate.parity.model_dump(),
        served=load.served if load else {},
        served_parity=parity(load.answers, answers.logits[name]["validation"][subjects.sample], TOLERANCE)
        if load
        else None,
        note=answers.missing.get(name),
    )


def _write_answers(out: Path, subjects: Subjects, answers: Answers, seed: int) -> None:
    arrays: dict[str, NDArray[Any]] = {f"{split}_labels": found.labels for split, found in subjects.splits.items()}
    arrays |= {f"{name}_{split}": logits for name, by in answers.logits.items() for split, logits in by.items()}
    np.savez_compressed(out / PREDICTIONS_FILE, allow_pickle=False, **arrays)
    validation = subjects.splits["validation"]
    golden = validation.batch(_draw(len(validation), GOLDEN_IMAGES, seed + 1))
    save_file({"images": np.ascontiguousarray(golden)}, out / GOLDEN_FILE)


def _draw(total: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Return up to `wanted` indices below `total`, without repeats, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:wanted])
