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

from pipeline.data.split import open_split
from pipeline.errors import BudgetError
from pipeline.evaluation import gate
from pipeline.evaluation.figures import flat_metrics
from pipeline.evaluation.quality import qualities, served_parity
from pipeline.models.spec import load_spec
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.candidates import Candidate, load_candidates
from pipeline.records.engines import load_engines
from pipeline.records.evaluation import GOLDEN_IMAGES_FILE, TEACHER, Evaluation, Measured, save_evaluation
from pipeline.records.verdict import save_verdict
from pipeline.report import plots
from pipeline.runners.candidates import (
    Answers,
    Subjects,
    agree_with_torch,
    answer_all,
    draw,
    save_answers,
    time_offline,
)
from pipeline.runners.host import host
from pipeline.serving.load.candidates import Load, Loads, measure_candidates
from pipeline.serving.triton.golden import TOLERANCE
from pipeline.serving.triton.repository import Artifact
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
        sample=draw(len(splits["validation"]), _SAMPLE, seed),
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
            _measured(one, loads.candidates.get(one.name), subjects, answers, config, seed).model_copy(
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
    save_answers(out / PREDICTIONS_FILE, subjects, answers)
    golden = splits["validation"].batch(draw(len(splits["validation"]), GOLDEN_IMAGES, seed + 1))
    save_file({"images": np.ascontiguousarray(golden)}, out / GOLDEN_IMAGES_FILE)
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
    candidate: Candidate, load: Load | None, subjects: Subjects, answers: Answers, config: Evaluate, seed: int
) -> Measured:
    """Put together what a candidate answered, here and through the server."""
    logits = answers.logits.get(candidate.name, {})
    labels = {name: split.labels for name, split in subjects.splits.items()}
    teacher = None if candidate.name == TEACHER else answers.logits[TEACHER]
    here = logits["validation"][subjects.sample] if load else None
    return Measured(
        **candidate.model_dump(exclude={"parity"}),
        **qualities(labels, logits, teacher, config, seed),
        export_parity=candidate.parity.model_dump(),
        served=load.served if load else {},
        served_parity=served_parity(load.answers, here, TOLERANCE) if load and here is not None else None,
        note=answers.missing.get(candidate.name),
    )
