"""What a sweep of loads or a search for settings found, for a person: a table for the terminal and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.serving.load.result import Closed, LoadResult
from pipeline.serving.load.sweep import Sweep
from pipeline.serving.load.tuning import Trial, Tuning, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

NOTHING = "–"


def load_table(model: str, found: Sweep) -> Table:
    """Return one line per load, times in ms; the knee is bold, and what must not be believed has a mark."""
    import rich.box
    from rich.table import Table

    drawn = Table(
        title=f"{model} under load, times in ms",
        caption="\n".join(notes(found)),
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # fits into 80 columns
    )
    first = "in flight" if isinstance(found.results[0].load, Closed) else "due/s"
    heads = (first, "answers/s", "p50", "p99", "p99.9", "failed", "batch", "queue", "compute", "CPU")
    gpu = any(one.server and one.server.gpu is not None for one in found.results)
    for head in (*heads, *(["GPU"] if gpu else [])):
        drawn.add_column(head, justify="right")
    for place, one in enumerate(found.results):
        drawn.add_row(*_cells(one, gpu), style="bold" if place == found.knee else "")
    return drawn


def notes(found: Sweep) -> list[str]:
    """Return what must be known to read the numbers, as sentences."""
    lines = []
    if found.knee is not None:
        at = found.results[found.knee]
        lines.append(f"Knee (most answers/s for each ms of waiting): {at.load}, {at.throughput:,.0f} answers/s.")
    if unstable := [str(one.load) for one in found.results if not one.stable]:
        lines.append(f"* not stable, its last three windows differ by more than 10 %: {', '.join(unstable)}")
    if bound := [str(one.load) for one in found.results if one.client_bound]:
        lines.append(f"! the load generator had no time to spare, the server may do more: {', '.join(bound)}")
    for one in found.results:
        if one.errors:
            what = ", ".join(f"{count} x {status}" for status, count in sorted(one.errors.items()))
            lines.append(f"{one.load}: {one.failures} of {one.requests} requests failed: {what}")
    return lines


def load_figure(model: str, found: Sweep) -> Figure:
    """Latency against throughput, one point per load, the knee marked."""
    from pipeline.report import plots

    figure, axes = plots.blank(f"{model}: latency against throughput", 6.4, 4.0)
    answered = [one for one in found.results if one.throughput > 0]
    across = [one.throughput for one in answered]
    for place, (name, label) in enumerate((("p50_ms", "p50"), ("p99_ms", "p99"), ("p999_ms", "p99.9"))):
        axes.plot(
            across,
            [getattr(one, name) for one in answered],
            marker=plots.MARKERS[place],
            color=plots.COLOURS[place],
            linewidth=1.4,
            markersize=5,
            label=label,
        )
    for one in answered:
        axes.annotate(
            str(one.load).partition(" ")[0],
            (one.throughput, one.p50_ms),
            xytext=(0, -12),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=plots.GREY,
        )
    if found.knee is not None:
        knee = found.results[found.knee]
        axes.axvline(knee.throughput, color=plots.GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f"knee: {knee.load}",
            (knee.throughput, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -10),
            textcoords="offset points",
            fontsize=8,
            color=plots.GREY,
        )
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set(xlabel="answers/s", ylabel="latency, ms")
    axes.legend(loc="upper left", frameon=False, labelcolor=plots.INK)
    return figure


def tuning_table(tuning: Tuning) -> Table:
    """Return a line for each tried set of settings, best first."""
    from rich.table import Table

    drawn = Table(title=f"settings under {tuning.load}")
    for head in ("instances", "threads", "batch", "delay us", "score", "answers/s", "p99 ms", "turns", ""):
        drawn.add_column(head, justify="right")
    for trial in ranked(tuning.trials):
        one = trial.serving
        mark = "chosen" if one == tuning.chosen else "as they were" if one == tuning.start else trial.refused or ""
        drawn.add_row(
            *map(str, (one.instances, one.threads, one.max_batch_size, one.queue_delay_us)),
            *(_number(value) for value in (trial.score, trial.throughput, trial.p99_ms)),
            str(len(trial.scores)),
            mark,
            style="bold" if one == tuning.chosen else "",
        )
    return drawn


def tuning_text(tuning: Tuning) -> str:
    """Return the table as Markdown, for MLflow."""
    lines = [
        tuning.sentence,
        "",
        "| instances | threads | max batch | delay us | score | answers/s | p99 ms | turns |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for trial in ranked(tuning.trials):
        one = trial.serving
        cells = [str(value) for value in (one.instances, one.threads, one.max_batch_size, one.queue_delay_us)]
        cells += [_number(value) for value in (trial.score, trial.throughput, trial.p99_ms)]
        lines.append(f"| {' | '.join(cells)} | {len(trial.scores)} |")
    return "\n".join(lines) + "\n"


def tuning_figure(tuning: Tuning) -> Figure:
    """p99 against throughput of everything that was tried; what was and what was chosen stand out."""
    from pipeline.report import plots

    figure, axes = plots.blank(f"settings under {tuning.load}", 6.4, 4.0)
    tried = [trial for trial in tuning.trials if trial.scores]
    axes.plot(
        [trial.throughput for trial in tried],
        [trial.p99_ms for trial in tried],
        linestyle="",
        marker=plots.MARKERS[0],
        color=plots.GREY,
        alpha=0.6,
        label="tried",
    )
    marked = {"as they were": tuning.start, "chosen": tuning.chosen}
    for place, (label, serving) in enumerate(marked.items()):
        for trial in (trial for trial in tried if trial.serving == serving):
            axes.plot(
                trial.throughput,
                trial.p99_ms,
                linestyle="",
                marker=plots.MARKERS[1 + place],
                color=plots.COLOURS[place],
                markersize=9,
                label=f"{label}: {in_words(serving)}",
            )
    axes.margins(0.12)
    axes.set(xlabel="answers/s (right is better)", ylabel="p99, ms (low is better)")
    axes.legend(loc="best", frameon=False, labelcolor=plots.INK, fontsize=8)
    return figure


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return what was tried, the highest score first."""
    return sorted(trials, key=lambda trial: -trial.score)


def _cells(one: LoadResult, gpu: bool) -> list[str]:
    marks = ("" if one.stable else " *") + (" !" if one.client_bound else "")
    amount = one.load.concurrency if isinstance(one.load, Closed) else one.load.rate
    times, server = [one.p50_ms, one.p99_ms, one.p999_ms], one.server
    cells = [f"{amount:,g}{marks}", f"{one.throughput:,.0f}", *map(_number, times), str(one.failures)]
    if server is None:
        return [*cells, *[NOTHING] * (5 if gpu else 4)]
    cells += [f"{server.mean_batch:.2f}", f"{server.queue_ms:.2f}", f"{server.compute_ms:.2f}", _share(server.cpu)]
    return [*cells, *([_share(server.gpu)] if gpu else [])]


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _number(value: float) -> str:
    """Three digits that matter; a dash for what is infinite or missing."""
    if value in {float("inf"), 0.0}:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
