"""How often ten evaluations of the same files name one winner, and how far apart their speeds are.

    .venv/bin/python benchmarks/verdict.py --recipe digits --input data=DIR --input teacher=DIR --input student=DIR \
        --input pruned=DIR --input candidates=DIR --input engines=DIR --out DIR

The directories are what the stages left (the artifacts of their runs); Triton must be up (`flyweight up`, or what
`flyweight all` left running). Runs the stage `evaluate` again and again and writes verdict.json and verdict.md into --out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import BudgetError
from pipeline.evaluation.preference import served_ratio
from pipeline.records.evaluation import Evaluation, load_evaluation
from pipeline.records.verdict import Verdict, load_verdict
from pipeline.settings.parse import load, parse_overrides
from pipeline.stages.evaluate import evaluate


def main() -> None:
    """Evaluate, tabulate, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--recipe", default="digits")
    arguments.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    arguments.add_argument("--input", action="append", default=[], metavar="NAME=DIR", required=True)
    arguments.add_argument("--times", type=int, default=10)
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    settings = load(given.recipe, parse_overrides(tuple(given.set)))
    inputs = {name: Path(directory).resolve() for name, _, directory in (one.partition("=") for one in given.input)}
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(given.times):
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            out, shared = Path(scratch), {"budget": settings.budget, "serving": settings.serving, "seed": settings.seed}
            try:
                evaluate(settings.evaluate, **inputs, **shared, out=out)
            except BudgetError as error:
                print(error)
            rows.append(row(load_evaluation(out), load_verdict(out)) | {"seconds": time.perf_counter() - begin})
        print(f"{number + 1}: {json.dumps(rows[-1])}", flush=True)
        (given.out / "verdict.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (given.out / "verdict.md").write_text(page(rows, given.recipe), encoding="utf-8")


def row(evaluation: Evaluation, verdict: Verdict) -> dict[str, Any]:
    """Return what one evaluation said: winner, what was equally fast, relative throughputs with their intervals."""
    served = [one for one in evaluation.candidates if one.served]
    ratios = {one.name: served_ratio(one, evaluation.teacher, evaluation.confidence).model_dump() for one in served}
    return {
        "cpu": evaluation.host.cpu,
        "cores": evaluation.host.cores,
        "winner": verdict.winner,
        "nearest": verdict.nearest,
        "equally_fast": verdict.ties.names if verdict.ties else (),
        "broken_by": verdict.ties.broken_by if verdict.ties else None,
        "throughput": {one.name: round(one.served[max(one.served)].throughput) for one in served},
        "turns": {one.name: [round(turn) for turn in one.served[max(one.served)].turns] for one in served},
        "times_the_teacher": {
            name: {key: round(value, 3) for key, value in one.items()} for name, one in ratios.items()
        },
    }


def page(rows: list[dict[str, Any]], recipe: str) -> str:
    """Return the evaluations as a Markdown table with the winners counted above it."""
    counted = ", ".join(f"{name} {count}" for name, count in Counter(str(one["winner"]) for one in rows).most_common())
    highest = Counter(max(without_teacher(one), key=without_teacher(one).__getitem__) for one in rows)
    names = list(rows[0]["times_the_teacher"])
    lines = [
        f"# {len(rows)} evaluations of the same files: `{recipe}`, {rows[0]['cpu']}, {rows[0]['cores']} cores",
        "",
        f"Winners: {counted}. The highest throughput alone would have named: "
        + ", ".join(f"{name} {count}" for name, count in highest.most_common())
        + ".",
        "",
        "| | winner | equally fast | " + " | ".join(f"{name} / teacher" for name in names[1:]) + " | s |",
        "|---" * (len(names) + 3) + "|",
    ]
    for number, one in enumerate(rows, 1):
        ratios = [
            f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
            for name, found in one["times_the_teacher"].items()
            if name in names[1:]
        ]
        cells = [str(number), str(one["winner"]), ", ".join(one["equally_fast"]), *ratios, f"{one['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def without_teacher(one: dict[str, Any]) -> dict[str, float]:
    """Return the throughputs of what may win."""
    return {name: value for name, value in one["throughput"].items() if name != "teacher"}


if __name__ == "__main__":
    main()
