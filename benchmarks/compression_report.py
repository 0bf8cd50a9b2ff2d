"""The figures of `compression.py` as Markdown, JSON and a plot: means over seeds with 95 % confidence intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import onnxruntime
import torch
from scipy import stats

from pipeline.machine import cpu

matplotlib.use("Agg")
from matplotlib import pyplot  # the backend must be set first

CONFIDENCE = 0.95
WIDE = ("teacher", "teacher + int8", "teacher + prune", "teacher + prune + int8")
PRUNING = (
    *(
        "student alone",
        "student",
        "prune 2x",
        "prune 2x, labels",
        "prune 2x evenly, labels",
        "torch-pruning 2x",
        "prune 4x",
        "low rank",
    ),
    *("low rank + prune", "depth", "unstructured 50 %", "2:4"),
)
QUANTIZING = tuple(
    f"student + {form}" for form in ("int8", "int8 percentile", "int8 entropy", "qat", "mixed", "dynamic", "fp16")
)
CHAINS = (
    *("student + int8", "depth + int8", "low rank + int8", "prune 2x + int8", "prune 2x + mixed", "prune 2x + qat"),
    *("low rank + prune + int8", "prune 4x + int8"),
)
ORDERS = {
    "prune, distil, quantize": "prune 2x + int8",
    "prune, train on labels, quantize": "prune 2x, labels + int8",
    "prune, quantize": "prune 2x, no recovery + int8",
    "prune, distil, quantize while training": "prune 2x + qat",
    "quantize while training, prune, distil, quantize": "qat + prune 2x + int8",
    "quantize while training, prune, quantize": "qat + prune 2x, no recovery + int8",
}
PEERS = tuple(
    f"{network} + {form}" for network in ("teacher", "student") for form in ("int8", "ONNX Runtime defaults", "NNCF")
)


@dataclass
class Measured:
    """One ONNX file and what was found out about it."""

    file: Path
    seed: int
    macs: int
    parameters: int
    bytes: int
    accuracy: float = float("nan")
    """On the test images."""
    images_per_second: dict[int, float] = field(default_factory=dict)
    """By batch size."""
    chance: float | None = None
    """Of a peer's file: McNemar's p of its test answers and those of our int8 of the same network and seed."""
    training: dict[str, Any] = field(default_factory=dict)
    """Of training with quantization: validation accuracy with and without, and which was kept."""

    @classmethod
    def of(cls, file: Path, seed: int, macs: int, parameters: int) -> Measured:
        """What is known of `file` at once."""
        return cls(file, seed, macs, parameters, file.stat().st_size)

    def with_file(self, file: Path, training: dict[str, Any] | None = None) -> Measured:
        """The same network in another file."""
        return replace(self, file=file, bytes=file.stat().st_size, images_per_second={}, training=training or {})


Made = Mapping[int, Mapping[str, Measured]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half width of Student's confidence interval of the mean; of one value, no width is known."""
    if len(values) < 2:
        return values[0], float("nan")
    width = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(width)


def write(out: Path, made: Made) -> None:
    """Write ``out.md``, ``out.json`` and ``out.png``, and print the first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        seed: {name: asdict(one) | {"file": one.file.name} for name, one in files.items()}
        for seed, files in made.items()
    }
    out.with_suffix(".json").write_text(json.dumps({"machine": _machine(), "seeds": rows}, indent=1) + "\n")
    text = "\n".join([
        _machine() + f" Seeds {', '.join(map(str, made))}; ± is a {CONFIDENCE:.0%} interval of the mean.",
        *("", "## The wide network", "", _table(made, WIDE, "teacher")),
        *("", "## Pruning, in float", "", _table(made, PRUNING, "student")),
        *("", "## Quantizing the student", "", _table(made, QUANTIZING, "student")),
        *("", "## Chains", "", _table(made, CHAINS, "student")),
        *("", "## Beside others, on the same float file and calibration images", "", _table(made, PEERS, "student"), "", _peers(made)),
        *("", "## In which order", "", _orders(made)),
        *("", "## Training with quantization, on the validation images", "", _training(made)),
        *("", "## Targets", "", _targets(made), ""),
    ])  # fmt: skip
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    _plot(made, out.with_suffix(".png"))


def _machine() -> str:
    host = cpu.describe()
    return f"{host.model}, {', '.join(host.flags)}; onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, 1 thread."


def _each(made: Made, value: Callable[[Mapping[str, Measured]], float]) -> tuple[float, float]:
    return interval([value(files) for files in made.values()])


def _drop(made: Made, name: str, original: str) -> tuple[float, float]:
    """Points of accuracy that `name` lies below `original`, seed by seed."""
    return _each(made, lambda files: 100 * (files[original].accuracy - files[name].accuracy))


def _speed(made: Made, name: str, original: str, batch: int) -> tuple[float, float]:
    return _each(made, lambda files: files[name].images_per_second[batch] / files[original].images_per_second[batch])


def _table(made: Made, names: Sequence[str], original: str) -> str:
    lines = [
        f"| | accuracy, % | drop from teacher, points | KiB | MMACs | images/s at 1 | at 64 | times {original} at 1 | at 64 |",
        "|---" * 9 + "|",
    ]
    for name in names:
        accuracy, spread = _each(made, lambda files, name=name: 100 * files[name].accuracy)
        size, _ = _each(made, lambda files, name=name: files[name].bytes / 1024)
        work, _ = _each(made, lambda files, name=name: files[name].macs / 1e6)
        speeds = [_each(made, lambda files, n=name, b=batch: files[n].images_per_second[b])[0] for batch in (1, 64)]
        ratios = [_speed(made, name, original, batch) for batch in (1, 64)]
        cells = [
            name, f"{accuracy:.2f} ± {spread:.2f}", "{:.2f} ± {:.2f}".format(*_drop(made, name, "teacher")), f"{size:,.0f}",
            f"{work:.2f}", *(f"{speed:,.0f}" for speed in speeds), *(f"{ratio:.2f}x" for ratio, _ in ratios),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _orders(made: Made) -> str:
    lines = ["| order | accuracy, % | drop from student, points |", "|---|---|---|"]
    for order, name in ORDERS.items():
        accuracy, spread = _each(made, lambda files, name=name: 100 * files[name].accuracy)
        lines.append(
            f"| {order} | {accuracy:.2f} ± {spread:.2f} | {'{:.2f} ± {:.2f}'.format(*_drop(made, name, 'student'))} |"
        )
    return "\n".join(lines)


def _peers(made: Made) -> str:
    """What ours answers better than the peers, and whether that is more than chance."""
    lines = ["| ours beside | points above it | McNemar's p, seed by seed |", "|---|---|---|"]
    for name in PEERS:
        chances = [files[name].chance for files in made.values()]
        if None not in chances:
            above, spread = _drop(made, name, name.split(" + ")[0] + " + int8")
            lines.append(f"| {name} | {above:+.2f} ± {spread:.2f} | {', '.join(f'{one:.2g}' for one in chances)} |")
    return "\n".join(lines)


def _training(made: Made) -> str:
    lines = ["| network | seed | without, % | with, % | p | kept |", "|---" * 6 + "|"]
    for name in ("student + qat", "prune 2x + qat"):
        for seed, files in made.items():
            found = files[name].training
            both = found["validation_accuracy"]
            cells = [
                name,
                seed,
                f"{100 * both['ptq']:.2f}",
                f"{100 * both['qat']:.2f}",
                f"{found['p']:.2g}",
                found["kept"],
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _targets(made: Made) -> str:
    lines = ["| target | found | reached |", "|---|---|---|"]

    def judge(target: str, name: str, original: str, batch: int, ratio: float, points: float) -> None:
        speed, drop = _speed(made, name, original, batch)[0], _drop(made, name, original)[0]
        found = f"{name}: {speed:.2f}x at batch {batch}, {drop:.2f} points below {original}"
        lines.append(f"| {target} | {found} | {'yes' if speed >= ratio and drop <= points else 'no'} |")

    judge("int8 at least 2.8x at most 0.3 point", "teacher + int8", "teacher", 32, 2.8, 0.3)
    judge("prune + int8 at least 5x at most 0.5 point", "teacher + prune + int8", "teacher", 32, 5.0, 0.5)
    for chain in ("prune 2x + int8", "prune 4x + int8"):
        judge("teacher to int8 proxy at least 50x at most 0.7 point", chain, "teacher", 64, 50.0, 0.7)
    for network in ("teacher", "student"):
        above = _drop(made, f"{network} + NNCF", f"{network} + int8")[0]
        chances = [files[f"{network} + NNCF"].chance or 0.0 for files in made.values()]
        least = min(1.0, min(chances) * len(chances))
        lines.append(
            f"| {network}, int8: as accurate as NNCF's at least, or different by chance alone | {above:+.2f} points; the "
            f"least p {least:.2g} (Bonferroni) | {'yes' if above >= 0 or least > 1 - CONFIDENCE else 'no'} |"
        )
    worst = min(
        files[f"{name} + qat"].accuracy - files[f"{name} + int8"].accuracy
        for files in made.values()
        for name in ("student", "prune 2x")
    )
    lines.append(
        f"| what training with quantization keeps is never below without | {100 * worst:+.2f} points at the least, on "
        f"the test images | {'yes' if worst >= 0 else 'no'} |"
    )
    return "\n".join(lines)


def _plot(made: Made, file: Path) -> None:
    """Accuracy against speed, both beside the teacher's."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    shown = dict.fromkeys([*WIDE, "student", *CHAINS, "prune 2x", "prune 4x", *PEERS])
    for name in shown:
        speed, _ = _speed(made, name, "teacher", 64)
        drop, spread = _drop(made, name, "teacher")
        other = "defaults" in name or "NNCF" in name
        axes.errorbar(
            speed,
            -drop,
            None if np.isnan(spread) else spread,
            marker="x" if other else "o",
            color="tab:gray" if other else None,
        )
        axes.annotate(name, (speed, -drop), xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xscale="log",
        xlabel="images/s, times the teacher's (batch 64, one thread)",
        ylabel="accuracy, points from the teacher",
    )
    axes.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
