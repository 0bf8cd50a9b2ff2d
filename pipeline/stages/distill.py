"""Train a student to answer as the teacher does.

Leaves a checkpoint, `history.json` and `plots/learning_curves.png`. Distillation is not assumed to help: with
`baseline` the same student also learns without the teacher, the better on the validation split is kept, and
`baseline.json` says which.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pipeline.data.manifest import load_manifest
from pipeline.files import write_json
from pipeline.models import checkpoint
from pipeline.models.size import macs
from pipeline.models.spec import ModelSpec, load_spec
from pipeline.protocols import Metrics
from pipeline.records.training import BASELINE_FILE
from pipeline.settings.training import Distill, Distributed
from pipeline.training.fit import check_same_task, new_spec, size, train_job
from pipeline.training.job import TrainingJob

_log = logging.getLogger(__name__)


def distill(
    config: Distill, *, data: Path, teacher: Path, distributed: Distributed, seed: int, out: Path, scratch: Path
) -> Metrics:
    """Train `config.model` with `config.loss` against the checkpoint in `teacher`; return accuracy, size and speed.

    Raises `ModelError` where the teacher was trained for other labels or images, and `SettingsError` as `train` does.
    """
    manifest = load_manifest(data)
    check_same_task("teacher", load_spec(teacher), manifest)
    job = TrainingJob(
        section="distill.fit",
        what="distill",
        spec=new_spec(config.model, manifest),
        fit=config.fit,
        data=data,
        seed=seed,
        scratch=scratch / "distilled",
        out=scratch / "distilled" / "out" if config.baseline else out,
        strategy=distributed.strategy,
        teacher=teacher,
        loss=config.loss,
        part=(0, 2 if config.baseline else 1),
    )
    _warn_if_not_smaller(job.spec, teacher)
    distilled = train_job(job, distributed)
    if not config.baseline:
        return distilled
    alone_job = job.model_copy(
        update={
            "what": "distill (baseline)",
            "scratch": scratch / "alone",
            "out": scratch / "alone" / "out",
            "teacher": None,
            "loss": None,
            "part": (1, 2),
        }
    )
    return _keep_the_better({"distilled": distilled, "alone": train_job(alone_job, distributed)}, job, alone_job, out)


def _keep_the_better(both: dict[str, Metrics], job: TrainingJob, alone_job: TrainingJob, out: Path) -> Metrics:
    """Copy the better of the two students to `out` and say which it is; a tie goes to the distilled one."""
    accuracy = {name: numbers["validation_accuracy"] for name, numbers in both.items()}
    kept = "alone" if accuracy["alone"] > accuracy["distilled"] else "distilled"
    shutil.copytree(alone_job.out if kept == "alone" else job.out, out, dirs_exist_ok=True)
    record = {"kept": kept, "validation_accuracy": accuracy}
    write_json(out / BASELINE_FILE, record)
    if kept == "alone":
        _log.warning(
            "distillation did not help: the student alone reached %.4f against %.4f", *reversed(accuracy.values())
        )
    return {
        **both[kept],
        "seconds": sum(numbers["seconds"] for numbers in both.values()),
        "baseline_validation_accuracy": accuracy["alone"],
        "distilled_validation_accuracy": accuracy["distilled"],
        "distillation_gain": accuracy["distilled"] - accuracy["alone"],
    }


def _warn_if_not_smaller(spec: ModelSpec, teacher: Path) -> None:
    student, heavy = macs(checkpoint.build(spec), spec.image_shape), size(teacher)["macs"]
    if student >= heavy:
        _log.warning(
            "the student (distill.model) needs %d multiply-accumulates, the teacher %d: it will not be faster; "
            "choose a smaller width or fewer blocks",
            student,
            heavy,
        )
