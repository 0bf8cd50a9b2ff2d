"""What the demo's student gains from a teacher that exists: distilled against the same student trained alone.

    python -m dvc repro prepare@fashion_mnist
    python benchmarks/teaching.py [--teacher teachers/fashion_mnist] [--seeds 17 18 19] [--workers 12] [--data DIR]
        [--work DIR] [--out benchmarks/results/teaching]

The student is that of the recipe `demo`, trained as it trains it, for its number of epochs (and for more: EPOCHS), on images
as they are and on shifted and mirrored ones. Both students of a pair see the same number of epochs, the same views in
the same order, and begin with the same weights. Temperature and weight of the loss are chosen by the mean accuracy over
the seeds on the validation images; the test images are for the students so chosen, and for those trained alone. Writes OUT.json and OUT.md.

What is finished stays in WORK; run again, the command goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import Plan, device_name, finished, train_all

from pipeline.data.split import Split, open_split
from pipeline.evaluation.intervals import bootstrap_drop
from pipeline.files import sha256
from pipeline.machine import places
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.settings.training import Fit
from pipeline.training.distributed import ranks
from pipeline.training.fit import read_history
from pipeline.training.job import TrainingJob
from pipeline.training.validation import EVALUATION_BATCH, evaluate, to_input

STUDENT: dict[str, Any] = {"name": "resnet", "width": 24, "blocks": [1, 1, 1], "stem_stride": 2}
FIT: dict[str, Any] = {"batch_size": 128, "lr": 0.1, "schedule": "onecycle"}
VIEWS: dict[str, dict[str, Any]] = {
    "as they are": {"crop_padding": 0, "horizontal_flip": False},
    "shifted and mirrored": {"crop_padding": 2, "horizontal_flip": True},
}
EPOCHS = (4, 8, 16)
TEMPERATURES = (2.0, 4.0, 8.0)
ALPHAS = (0.5, 0.9, 1.0)
FEWER = ((2.0, 0.9), (4.0, 0.9), (8.0, 0.9), (4.0, 1.0))
"""(temperature, alpha) that are tried where there are more epochs than the demo's."""


@dataclass(frozen=True)
class Cell:
    """What all seeds of one row of the study share; without a temperature the student is alone."""

    views: str
    epochs: int
    temperature: float | None = None
    alpha: float | None = None

    def name(self, seed: int) -> str:
        """Return the name of one training of it."""
        loss = "alone" if self.temperature is None else f"kd_{self.temperature:g}_{self.alpha:g}"
        return f"{self.views.replace(' ', '_')}-{self.epochs}-{loss}-{seed}"

    def plan(self, seed: int) -> Plan:
        """Return how it is trained with `seed`."""
        loss = None
        if self.temperature is not None:
            loss = Component.model_validate({"name": "kd", "temperature": self.temperature, "alpha": self.alpha})
        return Plan(Component(**STUDENT), Fit(epochs=self.epochs, **FIT, **VIEWS[self.views]), seed, loss)


def cells() -> Iterator[Cell]:
    """Yield all cells, the demo's number of epochs first."""
    for epochs, views in itertools.product(EPOCHS, VIEWS):
        yield Cell(views, epochs)
        for temperature, alpha in itertools.product(TEMPERATURES, ALPHAS) if epochs == EPOCHS[0] else FEWER:
            yield Cell(views, epochs, temperature, alpha)


def main() -> None:
    """Train, choose, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("teachers/fashion_mnist"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--workers", type=int, default=12, help="trainings at a time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no training after so long")
    parser.add_argument("--data", type=Path, default=places.data("fashion_mnist"))
    parser.add_argument("--work", type=Path, default=places.home() / "teaching")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/teaching"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    begun = time.monotonic()
    jobs = {
        cell.name(seed): cell.plan(seed).job(given.data, given.work / cell.name(seed), given.teacher)
        for cell in cells()
        for seed in given.seeds
    }
    for number, name in enumerate(train_all(jobs, given.workers, begun + given.seconds), 1):
        print(f"{number} of {len(jobs)}: {name}", flush=True)
    whole = [cell for cell in cells() if all(finished(jobs[cell.name(seed)]) for seed in given.seeds)]
    rows = [row(cell, [jobs[cell.name(seed)] for seed in given.seeds]) for cell in whole]
    test = open_split(given.data, "test")
    spec, teacher = checkpoint.load(given.teacher)
    record = {
        "device": device_name(),
        "torch": torch.__version__,
        "at_a_time": given.workers,
        "seeds": given.seeds,
        "student": STUDENT,
        "fit": FIT,
        "teacher": {
            "weights_sha256": sha256(given.teacher / checkpoint.WEIGHTS_FILE),
            "validation_accuracy": evaluate(teacher, spec, open_split(given.data, "validation"))[0],
            "test_accuracy": evaluate(teacher, spec, test)[0],
        },
        "rows": rows,
        "pairs": [pair(rows, views, epochs, jobs, given.seeds, test) for views, epochs in groups(rows)],
        "seconds": time.monotonic() - begun,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    given.out.with_suffix(".md").write_text(page(record), encoding="utf-8")
    print(page(record))


def row(cell: Cell, jobs: list[TrainingJob]) -> dict[str, Any]:
    """Return what a cell's students reached on the validation images."""
    reached = [max(one["validation_accuracy"] for one in read_history(job.out)) for job in jobs]
    return {**vars(cell), "validation_accuracy": reached, "mean": statistics.mean(reached)}


def groups(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return the (views, epochs) of which both kinds of student are there."""
    found = {(one["views"], one["epochs"]): set[bool]() for one in rows}
    for one in rows:
        found[one["views"], one["epochs"]].add(one["temperature"] is None)
    return [key for key, kinds in found.items() if len(kinds) == 2]


def pair(
    rows: list[dict[str, Any]], views: str, epochs: int, jobs: dict[str, TrainingJob], seeds: list[int], test: Split
) -> dict[str, Any]:
    """Return how the best distilled student (on validation images) and the one alone compare on the test images.

    The interval is over test images, each with the mean over the seeds of distilled minus alone: seeds are taken as they are.
    """
    here = [one for one in rows if (one["views"], one["epochs"]) == (views, epochs)]
    best = max((one for one in here if one["temperature"] is not None), key=lambda one: one["mean"])
    cell = Cell(views, epochs, best["temperature"], best["alpha"])
    distilled = np.stack([right(jobs[cell.name(seed)].out, test) for seed in seeds])
    alone = np.stack([right(jobs[Cell(views, epochs).name(seed)].out, test) for seed in seeds])
    gains = (distilled.astype(float) - alone).mean(axis=0)
    half = 1.96 * gains.std(ddof=1) / math.sqrt(len(gains))
    drops = [bootstrap_drop(a, d, 0.95, 10_000, 17) for a, d in zip(alone, distilled, strict=True)]
    return {
        "views": views,
        "epochs": epochs,
        "temperature": best["temperature"],
        "alpha": best["alpha"],
        "validation_alone": next(one["mean"] for one in here if one["temperature"] is None),
        "validation_distilled": best["mean"],
        "test_alone": alone.mean(axis=1).tolist(),
        "test_distilled": distilled.mean(axis=1).tolist(),
        "gain": {"value": gains.mean(), "low": gains.mean() - half, "high": gains.mean() + half},
        "gain_of_each_seed": [{"value": -one.value, "low": -one.high, "high": -one.low} for one in drops],
    }


@torch.inference_mode()
def right(directory: Path, split: Split) -> NDArray[np.bool_]:
    """Return which images of `split` the checkpoint in `directory` answers rightly."""
    spec, network = checkpoint.load(directory)
    network.to(ranks.device())
    starts = range(0, len(split), EVALUATION_BATCH)
    batches = (torch.from_numpy(split[start : start + EVALUATION_BATCH].copy()) for start in starts)
    said = [network(to_input(images, spec, ranks.device())).argmax(1).cpu() for images in batches]
    answered: NDArray[np.bool_] = torch.cat(said).numpy() == split.labels
    return answered


def page(record: dict[str, Any]) -> str:
    """Return the study as a Markdown page."""
    seeds, teacher = len(record["seeds"]), record["teacher"]
    lines = [
        f"# A student alone and with a teacher that exists: {record['device']}, torch {record['torch']}",
        "",
        f"The demo's student (`{json.dumps(STUDENT)}`), {seeds} seeds each, both with equal epochs, views and first weights. The "
        f"teacher reaches {percent(teacher['validation_accuracy'])} on validation and {percent(teacher['test_accuracy'])} on "
        f"test. T and alpha of plain distillation are the best on validation; the gain is on the test images, with the 95 % "
        f"interval over them (paired, each image with its mean over the seeds). Cells that are missing had not begun when the "
        f"time given (`--seconds`) was over.",
        "",
        f"`python benchmarks/teaching.py --workers {record['at_a_time']}`: {seeds * len(record['rows'])} trainings in "
        f"{record['seconds']:.0f} s.",
        "",
        "| images | epochs | T, alpha | validation: alone | distilled | test: alone | distilled | gain, points | each seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in record["pairs"]:
        gain = one["gain"]
        cells = [one["views"], str(one["epochs"]), f"{one['temperature']:g}, {one['alpha']:g}"]
        cells += [percent(one["validation_alone"]), percent(one["validation_distilled"])]
        cells += [percent(statistics.mean(one["test_alone"])), percent(statistics.mean(one["test_distilled"]))]
        cells += [f"{100 * gain['value']:+.2f} ({100 * gain['low']:+.2f} to {100 * gain['high']:+.2f})"]
        cells += [", ".join(f"{100 * of_one['value']:+.2f}" for of_one in one["gain_of_each_seed"])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "On the validation images, mean over the seeds (lowest to highest):", ""]
    lines += ["| images | epochs | T | alpha | validation |", "|---|---|---|---|---|"]
    for one in record["rows"]:
        loss = ["alone", "–"] if one["temperature"] is None else [f"{one['temperature']:g}", f"{one['alpha']:g}"]
        spread = f"({percent(min(one['validation_accuracy']))} to {percent(max(one['validation_accuracy']))})"
        lines.append(
            "| " + " | ".join([one["views"], str(one["epochs"]), *loss, f"{percent(one['mean'])} {spread}"]) + " |"
        )
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    """Write a share as per cent."""
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    main()
