"""Measure every candidate and hold it to the budget: the gate.

Answers to all validation and test images, speed in this process, speed through the live Triton server, then the
verdict. Leaves evaluation.json, verdict.json, predictions.npz (labels and logits), golden.safetensors and plots/*.png.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from safetensors.numpy import save_file

from pipeline.data.split import Split, open_split
from pipeline.errors import BudgetError
from pipeline.evaluation import gate
from pipeline.evaluation.figures import flat_metrics
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.candidates import Candidate, load_candidates
from pipeline.records.engines import load_engines
from pipeline.records.evaluation import GOLDEN_IMAGES_FILE, Evaluation, save_evaluation
from pipeline.records.verdict import Verdict, save_verdict
from pipeline.report import plots
from pipeline.runners.candidates import Subjects, answer_all, draw, measure, on_sample, save_answers
from pipeline.runners.host import host
from pipeline.serving.load.candidates import Loads, measure_candidates
from pipeline.settings.gate import Budget, Evaluate
from pipeline.settings.serving import Serving

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
        serve: measures candidates through a live server: `measure_candidates`, unless a test stands in for it.

    Raises:
        BudgetError: no candidate is inside the budget; everything has been written by then.
    """
    listed, left_by = load_candidates(candidates), {"train": teacher, "distill": student, "prune": pruned}
    splits = {name: open_split(data, name) for name in SPLITS}
    subjects = Subjects(
        listed=listed,
        directory=candidates,
        checkpoints={one.name: left_by[one.made_by] for one in listed.candidates if one.made_by in left_by},
        splits=splits,
        sample=draw(len(splits["validation"]), _SAMPLE, seed),
    )
    answers = answer_all(subjects)
    measured = measure(config, subjects, answers, seed)
    loads = (serve or measure_candidates)(config, serving, subjects, subjects.for_this_cpu)
    evaluation = Evaluation(
        labels=listed.labels,
        confidence=config.confidence,
        candidates=loads.added_to(measured, on_sample(subjects, answers)),
        host=host(loads.server),
        engines=load_engines(engines).model_dump(mode="json", exclude_defaults=True),
    )
    verdict = gate.decide(evaluation.teacher, evaluation.candidates, budget, config.confidence)
    _write(out, evaluation, verdict)
    save_answers(out / PREDICTIONS_FILE, subjects, answers)
    _set_golden_images_aside(out, splits["validation"], seed + 1)
    metrics = flat_metrics(evaluation)
    report("verdict", done=1, total=1, step=0, **metrics)  # an INFEASIBLE run shows its numbers too
    if verdict.verdict == "INFEASIBLE":
        raise BudgetError(verdict.sentence)
    return metrics


def _write(out: Path, evaluation: Evaluation, verdict: Verdict) -> None:
    """Write what was measured and what follows from it, and draw both."""
    save_evaluation(out, evaluation)
    save_verdict(out, verdict)
    for name, figure in plots.all_plots(evaluation, verdict).items():
        plots.png(figure, out / "plots" / f"{name}.png")


def _set_golden_images_aside(out: Path, validation: Split, seed: int) -> None:
    images = validation.batch(draw(len(validation), GOLDEN_IMAGES, seed))
    save_file({"images": np.ascontiguousarray(images)}, out / GOLDEN_IMAGES_FILE)
