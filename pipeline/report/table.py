"""The table *teacher | float proxy | pruned | int8*: one set of rows for the terminal, the page and the README."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.records.evaluation import TEACHER, Evaluation, Measured
from pipeline.records.measures import Interval, Offline, Served
from pipeline.records.verdict import CandidateVerdict, Verdict

if TYPE_CHECKING:
    import rich.table

TITLES = {"student": "float proxy", "int8_tensorrt": "int8 for TensorRT"}
"""What candidates are called where a person reads, if not by their own name."""
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One measure of every candidate, as text."""

    label: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The measures of several candidates side by side."""

    names: tuple[str, ...]
    """The candidates' own names, one a column."""
    rows: tuple[Row, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """The heads of the columns."""
        return tuple(title(name) for name in self.names)


def title(name: str) -> str:
    """Return what a candidate is called where a person reads."""
    return TITLES.get(name, name)


def table(evaluation: Evaluation, verdict: Verdict | None = None, *, served_only: bool = False) -> Table:
    """Return every measure as rows of text; ratios in brackets are against the teacher, larger is better.

    `served_only` leaves out the candidates that were not measured through Triton.
    """
    shown = [candidate for candidate in evaluation.candidates if candidate.served or not served_only]
    rows = [*_quality(evaluation, shown), *_size(evaluation, shown), *_offline(evaluation, shown)]
    rows += _served(evaluation, shown)
    if verdict:
        standings = {standing.name: standing for standing in verdict.candidates}
        rows.append(_row("budget", shown, lambda one: _standing(one, standings.get(one.name), verdict)))
    return Table(tuple(candidate.name for candidate in shown), tuple(rows))


def rich_table(evidence: Mapping[str, Any]) -> rich.table.Table | str:
    """Return the table of a pipeline run (`evidence.gather`) for a terminal, the verdict below it."""
    import rich.table

    if not evidence.get("evaluation"):
        return "there is no table: the stage `evaluate` has measured nothing in this pipeline run"
    evaluation = Evaluation.model_validate(evidence["evaluation"])
    verdict = Verdict.model_validate(evidence["verdict"]) if evidence.get("verdict") else None
    content = table(evaluation, verdict, served_only=True)
    drawn = rich.table.Table(
        title=f"{evidence['pipeline']}: test images, {evaluation.host.cpu}, {evaluation.host.cores} cores",
        caption="\n".join([*([verdict.sentence] if verdict else []), *_left_out(evaluation, verdict)]),
        caption_justify="left",
        show_lines=False,
    )
    drawn.add_column("")
    for name, head in zip(content.names, content.titles, strict=True):
        drawn.add_column(head, justify="right", style="bold" if verdict and name == verdict.winner else "")
    for row in content.rows:
        drawn.add_row(row.label, *row.cells)
    return drawn


def markdown(content: Table) -> str:
    """Return `content` as a Markdown table."""
    lines = ["| | " + " | ".join(content.titles) + " |", "|---" * (len(content.names) + 1) + "|"]
    lines += [
        f"| {row.label} | " + " | ".join(cell.replace("|", "\\|") for cell in row.cells) + " |" for row in content.rows
    ]
    return "\n".join(lines)


def count(number: float) -> str:
    """1234 -> '1.23 k', 310000 -> '310 k'."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def bytes_(size: float) -> str:
    """Bytes in powers of 1000: 98304 -> '98.3 kB', 1245000 -> '1.24 MB'."""
    return f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"


def _quality(evaluation: Evaluation, shown: Sequence[Measured]) -> list[Row]:
    def accuracy(one: Measured) -> str:
        if not one.test:
            return NOTHING
        found = one.test.accuracy
        return f"{100 * found.value:.2f} % ± {50 * (found.high - found.low):.2f}"

    def drop(one: Measured) -> str:
        return f"{100 * one.test.drop.value:+.2f}" if one.test and one.test.drop else NOTHING

    def interval(one: Measured) -> str:
        if not one.test or not one.test.drop:
            return NOTHING
        return f"{100 * one.test.drop.low:+.2f} to {100 * one.test.drop.high:+.2f}"

    def worst(one: Measured) -> str:
        change = recall_changes(evaluation, one)
        if not change or one.name == TEACHER:
            return NOTHING
        label, points = min(change, key=lambda pair: pair[1])
        return f"{label} {points:+.1f}"

    def share(name: str) -> Callable[[Measured], str]:
        return lambda one: f"{100 * getattr(one.test, name):.2f} %" if one.test else NOTHING

    return [
        _row("test accuracy", shown, accuracy),
        _row("accuracy drop, points", shown, drop),
        _row(f"  {100 * evaluation.confidence:g} % interval", shown, interval),
        _row("agrees with the teacher", shown, share("agreement")),
        _row("newly wrong", shown, share("churn")),
        _row("worst class, points", shown, worst),
        _row("calibration error", shown, share("ece")),
    ]


def _size(evaluation: Evaluation, shown: Sequence[Measured]) -> list[Row]:
    teacher = evaluation.teacher
    return [
        _row("parameters", shown, lambda one: count(one.parameters) + _times(teacher.parameters, one.parameters, one)),
        _row("MACs", shown, lambda one: count(one.macs) + _times(teacher.macs, one.macs, one)),
        _row("file", shown, lambda one: bytes_(one.size_bytes) + _times(teacher.size_bytes, one.size_bytes, one)),
    ]


def _offline(evaluation: Evaluation, shown: Sequence[Measured]) -> list[Row]:
    rows = []
    for batch, reference in evaluation.teacher.offline.items():

        def speed(one: Measured, batch: int = batch, reference: Offline = reference) -> str:
            found = one.offline.get(batch)
            return (
                _faster(one, found.images_per_second, found.interval, reference.images_per_second) if found else NOTHING
            )

        def latency(one: Measured, batch: int = batch) -> str:
            found = one.offline.get(batch)
            return f"{found.p50_ms:.2f} / {found.p99_ms:.2f}" if found else NOTHING

        rows += [
            _row(f"offline, batch {batch}: images/s", shown, speed),
            _row("  p50 / p99, ms", shown, latency),
        ]
    return rows


def _served(evaluation: Evaluation, shown: Sequence[Measured]) -> list[Row]:
    rows = []
    for level, reference in evaluation.teacher.served.items():

        def throughput(one: Measured, level: int = level, reference: Served = reference) -> str:
            found = one.served.get(level)
            return _faster(one, found.throughput, found.interval, reference.throughput) if found else NOTHING

        def latency(one: Measured, level: int = level) -> str:
            found = one.served.get(level)
            if not found:
                return NOTHING
            failed = f", {found.failures} failed" if found.failures else ""
            return f"{found.p50_ms:.2f} / {found.p99_ms:.2f}{failed}"

        rows += [
            _row(f"Triton, {level} at once: images/s", shown, throughput),
            _row("  p50 / p99, ms", shown, latency),
        ]
    return rows


def recall_changes(evaluation: Evaluation, candidate: Measured) -> list[tuple[str, float]]:
    """Return (label, change of its recall against the teacher in points) of every class of the test split."""
    if not candidate.test or not evaluation.teacher.test:
        return []
    pairs = zip(evaluation.labels, candidate.test.recall, evaluation.teacher.test.recall, strict=True)
    return [(label, 100 * (mine - theirs)) for label, mine, theirs in pairs if mine is not None and theirs is not None]


def _standing(one: Measured, standing: CandidateVerdict | None, verdict: Verdict) -> str:
    if one.name == verdict.winner:
        return "PROMOTE"
    if standing is None:
        return "reference"
    if not standing.eligible:
        return "not eligible"
    missed = sum(not check.ok for check in standing.checks)
    return f"misses {missed} of {len(standing.checks)} limits" if missed else "holds every limit"


def _left_out(evaluation: Evaluation, verdict: Verdict | None) -> list[str]:
    """A line for every candidate without a measurement through Triton: why."""
    reasons = {standing.name: standing.reason for standing in verdict.candidates} if verdict else {}
    return [
        f"{title(one.name)}: not measured through Triton: {reasons.get(one.name) or one.note or 'no reason given'}"
        for one in evaluation.candidates
        if not one.served
    ]


def _row(label: str, shown: Sequence[Measured], cell: Callable[[Measured], str]) -> Row:
    return Row(label, tuple(cell(candidate) for candidate in shown))


def _faster(one: Measured, mine: float, interval: Interval | None, theirs: float) -> str:
    spread = f" ± {(interval.high - interval.low) / 2:,.0f}" if interval else ""
    return f"{mine:,.0f}{spread}{_times(mine, theirs, one)}"


def _times(large: float, small: float, one: Measured) -> str:
    """' (12.3x)': how many times better than the teacher; nothing for the teacher itself."""
    return "" if one.name == TEACHER else f" ({large / small:.1f}x)"
