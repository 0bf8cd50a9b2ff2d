"""A strong teacher for Fashion-MNIST: candidates trained side by side, the best on the validation images kept in half precision.

    python -m dvc repro prepare@fashion_mnist
    python benchmarks/teacher.py train [--epochs 70] [--workers 8] [--data DIR] [--work DIR]
    python benchmarks/teacher.py keep [--work DIR] [--out teachers/fashion_mnist]

`train` trains CANDIDATES, on a GPU where there is one, by the loop that every stage trains with, and writes what each reached
on the validation images into WORK/candidates.json. `keep`, which needs no GPU, takes the best of them, writes its weights
in half precision with `model.json`, reads them back and evaluates what was read on the CPU: on the validation images and on
the test images, which no choice depends on. What came out is in `evidence.json` and, for people, README.md beside them.

What is finished stays in WORK, and a training that was killed goes on from its last epoch when the command is run again.
Processes take turns on a GPU unless NVIDIA's Multi-Process Service runs (`nvidia-cuda-mps-control -d`): with it an epoch of
eight at a time took half as long on an H200.
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

EPOCHS, SEED = 70, 17
EVIDENCE_FILE, PAGE_FILE = "evidence.json", "README.md"
MODEL: dict[str, Any] = {"name": "resnet", "width": 32, "blocks": [2, 2, 2]}
FIT: dict[str, Any] = {"batch_size": 256, "lr": 0.2, "random_erasing": 0.5, "ema_decay": 0.999}
"""What the candidates share. No label smoothing: it takes away what a student would learn of the wrong classes."""
CANDIDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "erase_quarter": ({}, {"random_erasing": 0.25}),
    "erase_half": ({}, {}),
    "erase_quarter_decay": ({}, {"random_erasing": 0.25, "weight_decay": 1e-3}),
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
        "macs": size.macs(network, spec.image_shape),
        "device": record["device"],
        "at_a_time": record["at_a_time"],
        "torch": record["torch"],
        "data_manifest_sha256": sha256(data / "manifest.json"),
        "weights_sha256": sha256(out / checkpoint.WEIGHTS_FILE),
        "weights_bytes": (out / checkpoint.WEIGHTS_FILE).stat().st_size,
        "trained_validation_accuracy": best["validation_accuracy"],
        "kept": {
            "evaluated_on": f"{cpu.describe().model}, torch {torch.__version__}",
            "validation_accuracy": accuracy["validation"],
            "test_accuracy": accuracy["test"],
            "test_interval_95": share(right, len(splits["test"]), 0.95).model_dump(),
        },
        "all_candidates": {key: summary(one) for key, one in sorted(record["candidates"].items())},
        "history": best["history"],
    }
    (out / EVIDENCE_FILE).write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    (out / PAGE_FILE).write_text(page(evidence), encoding="utf-8")
    print(page(evidence))


def summary(one: dict[str, Any]) -> dict[str, Any]:
    """Return what is worth keeping of a candidate that is not kept."""
    return {key: one[key] for key in ("parameters", "validation_accuracy", "validation_loss", "best_epoch", "seconds")}


def page(evidence: dict[str, Any]) -> str:
    """Return the evidence as a Markdown page."""
    kept, best = evidence["kept"], evidence["all_candidates"][evidence["candidate"]]
    interval = kept["test_interval_95"]
    lines = [
        "# A teacher for Fashion-MNIST",
        "",
        f"**{percent(kept['test_accuracy'])}** on the 10,000 test images (95 % interval {percent(interval['low'])} to "
        f"{percent(interval['high'])}), {percent(kept['validation_accuracy'])} on the validation images: these files, in half "
        f"precision, read back and evaluated in float32 on a CPU ({kept['evaluated_on']}).",
        "",
        f"`{json.dumps(evidence['model'])}`: {evidence['parameters']:,} parameters, {evidence['macs'] / 1e6:.0f} M multiply-"
        f"accumulates, {evidence['weights_bytes'] / 1e6:.2f} MB. Trained in {best['seconds']:.0f} s on an {evidence['device']} "
        f"with {evidence['at_a_time'] - 1} others beside it, PyTorch {evidence['torch']}, seed {evidence['seed']}; epoch "
        f"{evidence['best_epoch']} of {evidence['fit']['epochs']} is kept, the best on the validation images. To make it "
        f"again (on a GPU the numbers will differ a little):",
        "",
        "```sh",
        *evidence["command"],
        "```",
        "",
        "It was chosen on the validation images alone:",
        "",
        "| candidate | what differs | parameters | best validation | in epoch |",
        "|---|---|---|---|---|",
    ]
    for name, one in evidence["all_candidates"].items():
        differs = ", ".join(f"{key} {value}" for part in CANDIDATES[name] for key, value in part.items()) or "–"
        cells = [name, differs, f"{one['parameters']:,}", percent(one["validation_accuracy"]), str(one["best_epoch"])]
        lines.append("| " + " | ".join(cells) + " |")
    shared = ", ".join(f"{key} {value}" for key, value in FIT.items())
    lines += [
        "",
        f"Unless it differs: {MODEL['name']} of width {MODEL['width']}, blocks {MODEL['blocks']}; {shared}; all else",
    ]
    lines[-1] += " as a fit is by default (`evidence.json` has every setting, and each epoch's losses and accuracies)."
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    """Write a share as per cent."""
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    main()
