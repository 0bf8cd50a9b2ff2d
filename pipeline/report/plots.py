"""The plots of an evaluation: drawn once, written as PNG for MLflow and put as SVG into the page.

Every plot is made from what `evaluation.json` holds, so that the page needs nothing else. Colours are those of Okabe
and Ito (https://jfly.uni-koeln.de/color/), which stay apart for colour-blind eyes; every line has a marker of its own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipeline.records.evaluation import TEACHER, Evaluation
from pipeline.records.measures import Estimate, Interval
from pipeline.records.verdict import Verdict
from pipeline.report.table import bytes_, count, recall_changes, title

INK = "#1a1c20"
"""Of text and axes; the page replaces it by the colour of its own text."""
GREY = "#8a929c"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 9.5,
    "grid.alpha": 0.35,
    "grid.color": GREY,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "flyweight",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_MOST_CELLS = 20
"""Classes up to which the confusion matrix has its numbers written in."""
_FEWEST_IN_BIN = 10
"""Images below which a bin's accuracy is noise."""


def all_plots(evaluation: Evaluation, verdict: Verdict | None) -> dict[str, Figure]:
    """Return every plot that `evaluation` has the numbers for, by file name without suffix."""
    focus = _focus(evaluation, verdict)
    figures = {"sizes": sizes(evaluation)}
    if evaluation.candidate(focus).test:
        figures["confusion_matrix"] = confusion_matrix(evaluation, focus)
        figures["reliability"] = reliability(evaluation, list(dict.fromkeys([TEACHER, focus])))
        if focus != TEACHER:
            figures["recall_change"] = recall_change(evaluation, focus)
    if any(candidate.served and candidate.test for candidate in evaluation.candidates):
        figures["accuracy_throughput"] = accuracy_against_throughput(evaluation)
        figures["accuracy_latency"] = accuracy_against_latency(evaluation)
    return figures


def accuracy_against_throughput(evaluation: Evaluation) -> Figure:
    """Test accuracy against images/s through Triton at the largest concurrency, both with their intervals."""
    level = max(evaluation.teacher.served)
    return _tradeoff(
        evaluation,
        {
            one.name: _spread(one.served[level].throughput, one.served[level].interval)
            for one in evaluation.candidates
            if level in one.served
        },
        f"Accuracy and throughput, {_in_flight(level)}",
        "images/s through Triton (right is better)",
    )


def accuracy_against_latency(evaluation: Evaluation) -> Figure:
    """Test accuracy with its interval against the median latency of a lone request through Triton."""
    level = min(evaluation.teacher.served)
    return _tradeoff(
        evaluation,
        {one.name: _spread(one.served[level].p50_ms, None) for one in evaluation.candidates if level in one.served},
        f"Accuracy and latency, {_in_flight(level)}",
        "p50 through Triton, ms (left is better)",
    )


def confusion_matrix(evaluation: Evaluation, name: str) -> Figure:
    """Shares of each true class's images by the class that `name` says, on the test split."""
    quality = evaluation.candidate(name).test
    assert quality is not None, f"{name} has no test answers"
    counts = np.array(quality.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = evaluation.labels
    figure, axes = blank(f"{title(name)}: what is taken for what (test images)", 5.6, 5.0)
    colour = np.array(mpl.colors.to_rgba(COLOURS[0]))
    cells = np.tile(colour, (*shares.shape, 1))
    cells[..., 3] = np.where(shares > 0, 0.06 + 0.94 * np.sqrt(shares), 0)  # small confusions must be seen too
    axes.imshow(cells, aspect="auto")
    axes.grid(False)
    if len(labels) <= _MOST_CELLS:
        for true, said in np.argwhere(counts > 0):
            ink = "white" if cells[true, said, 3] > 0.55 else INK
            axes.text(said, true, str(counts[true, said]), ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def reliability(evaluation: Evaluation, names: Sequence[str]) -> Figure:
    """How often each of `names` is right when it is so and so sure, on the test split; nearly empty bins are left out."""
    figure, axes = blank("How far confidence can be trusted (test images)", 5.0, 3.8)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.annotate("as sure as right", (0.06, 0.1), rotation=34, color=GREY, fontsize=8)
    for place, name in enumerate(names):
        quality = evaluation.candidate(name).test
        if quality is None:
            continue
        bins = [one for one in quality.reliability if one.images >= _FEWEST_IN_BIN]
        axes.plot(
            [one.confidence for one in bins],
            [one.accuracy for one in bins],
            marker=MARKERS[place],
            color=COLOURS[place],
            linewidth=1.4,
            markersize=5,
            label=f"{title(name)} (ECE {100 * quality.ece:.1f} %)",
        )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="upper left", frameon=False, labelcolor=INK)
    return figure


def recall_change(evaluation: Evaluation, name: str) -> Figure:
    """Change of each class's recall from the teacher to `name`, on the test split."""
    changes = sorted(recall_changes(evaluation, evaluation.candidate(name)), key=lambda pair: pair[1])
    figure, axes = blank(f"Recall of each class: {title(name)} against the teacher", 5.0, 1.2 + 0.26 * len(changes))
    points = [change for _, change in changes]
    bars = axes.barh(
        [label for label, _ in changes], points, color=[COLOURS[4] if change < 0 else COLOURS[2] for change in points]
    )
    axes.bar_label(bars, [f"{change:+.1f}" for change in points], padding=3, fontsize=8, color=INK)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.18)
    axes.set(xlabel="points")
    axes.grid(axis="y", visible=False)
    return figure


def sizes(evaluation: Evaluation) -> Figure:
    """Bytes of every candidate's file."""
    shown = list(reversed(evaluation.candidates))
    figure, axes = blank("File size", 5.0, 0.9 + 0.34 * len(shown))
    bars = axes.barh(
        [title(one.name) for one in shown],
        [one.size_bytes / 1e3 for one in shown],
        color=[_colour(evaluation, one.name) for one in shown],
    )
    axes.bar_label(bars, [bytes_(one.size_bytes) for one in shown], padding=3, fontsize=8.5, color=INK)
    axes.margins(x=0.16)
    axes.set(xlabel="kB")
    axes.grid(axis="y", visible=False)
    return figure


def learning_curves(history: Mapping[str, Sequence[Mapping[str, Any]] | None]) -> Figure:
    """Validation accuracy by epoch of every training in `history` (stage -> its history.json)."""
    figure, axes = blank("Validation accuracy while training", 5.0, 3.4)
    for place, (stage, epochs) in enumerate(history.items()):
        found = [one for one in epochs or [] if one.get("validation_accuracy") is not None]
        axes.plot(
            [one["epoch"] for one in found],
            [100 * one["validation_accuracy"] for one in found],
            marker=MARKERS[place % len(MARKERS)],
            color=COLOURS[place % len(COLOURS)],
            markersize=4.5,
            label=stage,
        )
    axes.set(xlabel="epoch", ylabel="%")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right", frameon=False, labelcolor=INK)
    return figure


def blank(heading: str, width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of so many inches with one pair of axes in our style."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(heading)
    return figure, axes


def png(figure: Figure, file: Path) -> None:
    """Write `figure` on white."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=130, facecolor="white")


def write(figure: Figure, file: Path) -> None:
    """Write `figure` as what the name of `file` ends in: .png or .svg."""
    if file.suffix == ".png":
        png(figure, file)
    else:
        file.write_text(svg(figure), encoding="utf-8")


def svg(figure: Figure) -> str:
    """Return `figure` as an ``<svg>`` element without background whose text and axes take the colour around it."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", text, count=2)


def _tradeoff(evaluation: Evaluation, across: Mapping[str, Estimate], heading: str, label: str) -> Figure:
    figure, axes = blank(heading, 5.0, 3.6)
    for name, value in across.items():
        quality = evaluation.candidate(name).test
        if quality is None:
            continue
        accuracy = quality.accuracy
        place = [one.name for one in evaluation.candidates].index(name)
        axes.errorbar(
            value.value,
            100 * accuracy.value,
            xerr=[[value.value - value.low], [value.high - value.value]],
            yerr=[[100 * (accuracy.value - accuracy.low)], [100 * (accuracy.high - accuracy.value)]],
            marker=MARKERS[place % len(MARKERS)],
            color=_colour(evaluation, name),
            markersize=7,
            capsize=3,
            linestyle="",
            elinewidth=1.2,
            label=title(name),
        )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.14)
    axes.legend(loc="best", frameon=False, labelcolor=INK)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda number, _: f"{number:g}" if number < 1000 else count(number).replace(" ", ""))
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=label, ylabel="test accuracy, %")
    return figure


def _spread(value: float, interval: Interval | None) -> Estimate:
    """Return `value` with its interval, or with none around it."""
    low, high = (interval.low, interval.high) if interval else (value, value)
    return Estimate(value=value, low=low, high=high)


def _in_flight(level: int) -> str:
    return "one request at a time" if level == 1 else f"{level} requests in flight"


def _colour(evaluation: Evaluation, name: str) -> str:
    """The same colour for the same candidate in every plot."""
    return COLOURS[[one.name for one in evaluation.candidates].index(name) % len(COLOURS)]


def _focus(evaluation: Evaluation, verdict: Verdict | None) -> str:
    """The candidate that the plots look at: the winner, else the nearest, else the last one."""
    chosen = (verdict.winner or verdict.nearest) if verdict else None
    return chosen or evaluation.candidates[-1].name
