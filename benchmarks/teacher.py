"""A strong teacher for Fashion-MNIST: candidates trained side by side, the best on the validation images kept in half precision.

    python -m dvc repro prepare@fashion_mnist
    python benchmarks/teacher.py train [--epochs 120] [--workers 8] [--data DIR] [--work DIR]
    python benchmarks/teacher.py keep [--work DIR] [--out teachers/fashion_mnist]

`train` trains CANDIDATES, on a GPU where there is one, by the loop that every stage trains with, and writes what each reached
on the validation images into WORK/candidates.json. `keep`, which needs no GPU, takes the best of them, writes its weights
in half precision with `model.json` and `evidence.json`, reads them back and evaluates what was read on the CPU: on the
validation images and, once, on the test images.

What is finished stays in WORK, and a training that was killed goes on from its last epoch when the command is run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from side_by_side import Plan, device_name, train_all

from pipeline.data.split import open_split
from pipeline.evaluation.intervals import share
from pipeline.files import sha256
from pipeline.machine import cpu, places
from pipeline.models import checkpoint, size
from pipeline.models.spec import SPEC_FILE, load_spec
from pipeline.settings.base import Component
from pipeline.settings.training import Fit
from pipeline.training.fit import read_history
from pipeline.training.validation import evaluate

EPOCHS, SEED = 120, 17
EVIDENCE_FILE = "evidence.json"
MODEL: dict[str, Any] = {"name": "resnet", "width": 32, "blocks": [2, 2, 2]}
FIT: dict[str, Any] = {"batch_size": 256, "lr": 0.2, "random_erasing": 0.5, "ema_decay": 0.999}
"""What the candidates share. No label smoothing: it takes away what a student would learn of the wrong classes."""
CANDIDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "erase_quarter": ({}, {"random_erasing": 0.25}),
    "erase_half": ({}, {}),
    "erase_most": ({}, {"random_erasing": 0.75}),
    "decay": ({}, {"weight_decay": 1e-3}),
    "cosine": ({}, {"schedule": "cosine", "warmup": 0.05}),
    "fast": ({}, {"lr": 0.4}),
    "deeper": ({"blocks": [3, 3, 2]}, {}),
    "wider_decay": ({"width": 36}, {"weight_decay": 1e-3}),
}
"""Name -> what differs in the model, what differs in the fit."""


def main() -> None:
    """Train, or keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "keep"])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=8, help="trainings at a time")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--data", type=Path, default=places.data("fashion_mnist"))
    parser.add_argument("--work", type=Path, default=places.home() / "teacher")
    parser.add_argument("--out", type=Path, default=Path("teachers/fashion_mnist"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if given.what == "train":
        train(given.data, given.work, given.epochs, given.workers, given.candidates)
    else:
        keep(given.data, given.work, given.out)


def plan(name: str, epochs: int) -> Plan:
    """Return how the candidate `name` is trained."""
    model, fit = CANDIDATES[name]
    return Plan(Component(**MODEL | model), Fit(epochs=epochs, **FIT | fit), SEED)


def train(data: Path, work: Path, epochs: int, workers: int, names: list[str]) -> None:
    """Train the candidates and write what each reached as soon as it is known."""
    jobs = {name: plan(name, epochs).job(data, work / name) for name in names}
    found: dict[str, Any] = {}
    begun = time.monotonic()
    for name in train_all(jobs, workers):
        history, network = read_history(jobs[name].out), checkpoint.load(jobs[name].out)[1]
        best = max(history, key=lambda row: (row["validation_accuracy"], row["epoch"]))
        found[name] = {
            "model": jobs[name].spec.arguments,
            "fit": jobs[name].fit.model_dump(),
            "seed": SEED,
            "parameters": size.parameters(network),
            "validation_accuracy": best["validation_accuracy"],
            "validation_loss": best["validation_loss"],
            "best_epoch": int(best["epoch"]),
            "seconds": sum(row["seconds"] for row in history),
            "history": history,
        }
        facts = {"device": device_name(), "torch": torch.__version__, "python": platform.python_version()}
        record = {**facts, "at_a_time": workers, "seconds": time.monotonic() - begun, "candidates": found}
        (work / "candidates.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(
            f"{name}: {100 * best['validation_accuracy']:.2f} % on validation in epoch {best['epoch']:.0f}", flush=True
        )


def chosen(work: Path) -> str:
    """Return the name of the finished candidate that was best on the validation images; of equals the one with less loss."""
    found = json.loads((work / "candidates.json").read_text(encoding="utf-8"))["candidates"]
    return max(found, key=lambda name: (found[name]["validation_accuracy"], -found[name]["validation_loss"]))


def halve(source: Path, out: Path) -> None:
    """Write the checkpoint in `source` to `out` with its floats in half precision."""
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / checkpoint.WEIGHTS_FILE)
    halved = {name: one.half() if one.is_floating_point() else one for name, one in weights.items()}
    save_file(halved, out / checkpoint.WEIGHTS_FILE)
    (out / SPEC_FILE).write_text(load_spec(source).model_dump_json(indent=2) + "\n", encoding="utf-8")


def keep(data: Path, work: Path, out: Path) -> None:
    """Keep the best candidate in half precision, evaluate what was kept, and write its evidence."""
    record = json.loads((work / "candidates.json").read_text(encoding="utf-8"))
    name = chosen(work)
    best = record["candidates"][name]
    halve(work / name / "out", out)
    spec, network = checkpoint.load(out)
    splits = {which: open_split(data, which) for which in ("validation", "test")}
    accuracy = {which: evaluate(network, spec, split)[0] for which, split in splits.items()}
    right = round(accuracy["test"] * len(splits["test"]))
    evidence = {
        "command": [
            "python -m dvc repro prepare@fashion_mnist",
            f"python benchmarks/teacher.py train --epochs {best['fit']['epochs']} --workers {record['at_a_time']}",
            "python benchmarks/teacher.py keep",
        ],
        "candidate": name,
        **{key: best[key] for key in ("model", "fit", "seed", "parameters", "best_epoch", "seconds")},
        "device": record["device"],
        "torch": record["torch"],
        "data_manifest_sha256": sha256(data / "manifest.json"),
        "weights_sha256": sha256(out / checkpoint.WEIGHTS_FILE),
        "weights_bytes": (out / checkpoint.WEIGHTS_FILE).stat().st_size,
        "trained_validation_accuracy": best["validation_accuracy"],
        "kept": {
            "evaluated_on": f"{cpu.describe().model}, float32 from half precision, torch {torch.__version__}",
            "validation_accuracy": accuracy["validation"],
            "test_accuracy": accuracy["test"],
            "test_interval_95": share(right, len(splits["test"]), 0.95).model_dump(),
        },
        "validation_accuracy_of_all_candidates": {
            key: one["validation_accuracy"] for key, one in sorted(record["candidates"].items())
        },
        "history": best["history"],
    }
    (out / EVIDENCE_FILE).write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: evidence[key] for key in ("candidate", "weights_bytes", "kept")}, indent=1))


if __name__ == "__main__":
    main()
