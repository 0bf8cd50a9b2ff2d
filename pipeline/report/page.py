"""The evidence page: one HTML file that holds everything a pipeline run proved, and needs no network to be read.

`page(evidence.gather(name))` also works for a run that failed early: a part that is missing says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.records.evaluation import TEACHER, Evaluation, Measured
from pipeline.records.verdict import Verdict
from pipeline.report import plots
from pipeline.report.table import NOTHING, bytes_, count, markdown, table, title

Evidence = Mapping[str, Any]
_DONE = {"distill": "distilled", "prune": "pruned", "quantize": "quantized"}
"""Stage -> what it did to a candidate, in the words of the page."""
_PLOTS = {
    "accuracy_throughput": "Bars are confidence intervals; the axis is logarithmic.",
    "accuracy_latency": "Bars are confidence intervals; the axis is logarithmic.",
    "recall_change": "Change of each class's recall against the teacher.",
    "reliability": "On the dashed line a model is right as often as it is sure.",
    "confusion_matrix": "Numbers are images; the shade is the share of the row, its square root.",
    "sizes": "ONNX files, preprocessing and labels inside.",
}
"""Plots of the page in order, each with what a reader should know."""


@dataclass(frozen=True)
class Step:
    """What one compression step cost and gave."""

    done: str
    before: str
    after: str
    cells: tuple[str, ...]


def page(evidence: Evidence) -> str:
    """Return the page for one pipeline run (`evidence.gather`): UTF-8 HTML without scripts and without anything to load."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    evaluation, verdict = _measured(evidence)
    focus = (verdict.winner or verdict.nearest) if verdict else None
    return environment.get_template("page.html.j2").render(
        pipeline=evidence["pipeline"],
        begun=evidence.get("begun"),
        parent_url=_link(evidence.get("parent_url")),
        banner=banner(evidence),
        evaluation=evaluation,
        verdict=verdict,
        focus=focus,
        table=table(evaluation, verdict) if evaluation else None,
        steps=steps(evaluation) if evaluation else [],
        figures=figures(evidence),
        classes=_classes(evaluation, focus) if evaluation and focus else [],
        facts={
            name: [
                (what if name == "settings" else what.replace("_", " "), value, link)
                for what, value, link in _facts(evidence.get(name))
            ]
            for name in ("baseline", "quantization", "engines", "promotion", "served", "data", "lineage", "settings")
        },
        stages=[{**stage, "link": _link(stage.get("url")), "time": _time(stage.get("seconds"))} for stage in _stages(evidence)],
        why={name: missing(evidence, name) for name in _SOURCES},
        title=title,
        missing=missing,
    )  # fmt: skip


def summary(evidence: Evidence) -> str:
    """Return verdict and table as Markdown, for the description of the pipeline's MLflow run."""
    evaluation, verdict = _measured(evidence)
    said = banner(evidence)
    parts = [f"**{said['word']}**: {said['text']}"]
    if evaluation:
        parts.append(markdown(table(evaluation, verdict)))
    parts.append("The whole evidence is in the artifact `report.html`.")
    return "\n\n".join(parts)


def banner(evidence: Evidence) -> dict[str, str]:
    """Return the verdict in one word and one sentence; where there is none, which stage stands in its way."""
    _, verdict = _measured(evidence)
    if verdict:
        word, _, text = verdict.sentence.partition(": ")
        return {"kind": verdict.verdict.lower(), "word": word, "text": text}
    return {"kind": "none", "word": "NO VERDICT", "text": missing(evidence, "evaluate")}


def missing(evidence: Evidence, stage: str) -> str:
    """Return why `stage` has left nothing to show."""
    stages = {one["stage"]: one for one in _stages(evidence)}
    own = stages.get(stage, {"status": "not run"})
    if own["status"] != "not run":
        reason = own.get("reason") or own.get("error")
        return f"{stage} {'was ' if own['status'] in {'skipped', 'killed'} else ''}{own['status']}" + (
            f": {reason}" if reason else ""
        )
    for name, other in stages.items():
        if other["status"] in {"failed", "killed"}:
            return f"{stage} has not run, since {name} {missing(evidence, name).removeprefix(f'{name} ')}"
    return f"{stage} has not run"


def steps(evaluation: Evaluation) -> list[Step]:
    """Return what each step from a candidate to one made from it cost in accuracy and gave in size and speed."""
    there = {one.name: one for one in evaluation.candidates}
    return [
        Step(_DONE.get(one.made_by, one.made_by), title(one.parent), title(one.name), _change(there[one.parent], one))
        for one in evaluation.candidates
        if one.made_by and one.parent in there
    ]


def figures(evidence: Evidence) -> list[tuple[Markup, str]]:
    """Return every plot there are numbers for, as (svg, what to know)."""
    evaluation, verdict = _measured(evidence)
    drawn = []
    if evaluation:
        found = plots.all_plots(evaluation, verdict)
        drawn = [(found[name], note) for name, note in _PLOTS.items() if name in found]
    history = {stage: epochs for stage, epochs in (evidence.get("history") or {}).items() if epochs}
    if history:
        drawn.append((plots.learning_curves(history), "Each training by itself; epochs are not of equal cost."))
    return [(Markup(plots.svg(figure)), note) for figure, note in drawn]  # noqa: S704 - matplotlib escapes its texts


_SOURCES = ("evaluate", "distill", "quantize", "build_tensorrt", "promote", "verify_served", "prepare_data")
"""Stages that parts of the page come from."""


def _measured(evidence: Evidence) -> tuple[Evaluation | None, Verdict | None]:
    evaluation, verdict = evidence.get("evaluation"), evidence.get("verdict")
    return (
        Evaluation.model_validate(evaluation) if evaluation else None,
        Verdict.model_validate(verdict) if verdict else None,
    )


def _change(before: Measured, after: Measured) -> tuple[str, ...]:
    """Accuracy in points, then how many times less or more of everything else."""
    accuracy = NOTHING
    if before.test and after.test:
        accuracy = f"{100 * (after.test.accuracy.value - before.test.accuracy.value):+.2f}"
    batch, level = max(after.offline, default=None), max(after.served, default=None)
    offline = served = NOTHING
    if batch in before.offline and batch is not None:
        offline = _times(after.offline[batch].images_per_second, before.offline[batch].images_per_second)
    if level in before.served and level is not None:
        served = _times(after.served[level].throughput, before.served[level].throughput)
    return (
        accuracy,
        f"{count(before.parameters)} → {count(after.parameters)}",
        f"{count(before.macs)} → {count(after.macs)}",
        f"{bytes_(before.size_bytes)} → {bytes_(after.size_bytes)}",
        offline,
        served,
    )


def _classes(evaluation: Evaluation, focus: str) -> list[tuple[str, str, str, str]]:
    """(label, teacher's recall, recall of `focus`, change in points) of each class."""
    mine, theirs = evaluation.candidate(focus).test, evaluation.candidate(TEACHER).test
    if not mine or not theirs:
        return []
    return [
        (label, f"{100 * before:.1f} %", f"{100 * after:.1f} %", f"{100 * (after - before):+.1f}")
        for label, before, after in zip(evaluation.labels, theirs.recall, mine.recall, strict=True)
        if before is not None and after is not None
    ]


def _facts(tree: Any, prefix: str = "") -> Iterator[tuple[str, str, str | None]]:
    """Yield (what, value, link or None) for every leaf of `tree`."""
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _facts(branch, f"{prefix} › {name}" if prefix else str(name))
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        for place, branch in enumerate(tree):
            yield from _facts(branch, f"{prefix} {place + 1}")
    elif tree is not None:
        text = (
            ", ".join(map(str, tree))
            if isinstance(tree, list)
            else f"{tree:.4g}"
            if isinstance(tree, float)
            else str(tree)
        )
        yield prefix, text, _link(tree)


def _stages(evidence: Evidence) -> list[dict[str, Any]]:
    return [dict(stage) for stage in evidence.get("stages") or []]


def _link(address: Any) -> str | None:
    """Return `address` where it is one that may stand behind a link."""
    return address if isinstance(address, str) and address.startswith(("http://", "https://")) else None


def _time(seconds: float | None) -> str:
    if not seconds:
        return ""
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _times(large: float, small: float) -> str:
    return f"{large / small:.1f}x"
