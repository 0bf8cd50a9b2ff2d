"""What `serving.py` found, for a person: targets, a Markdown page, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from pipeline.report import plots

Results: TypeAlias = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Key of a contender -> requests in flight -> a measurement a round."""
OURS = {"triton": "gRPC", "triton-http": "HTTP/1.1"}
"""Our rows, and what they are asked over."""
PEERS = {"fastapi": "HTTP/1.1", "bentoml": "HTTP/1.1", "mlserver": "gRPC", "mlserver-batching": "gRPC"}
CEILING = 0.95
CEILINGS = {"identity": "the identity", "bare": "a bare `session.run`"}
AHEAD_AT = ("16", "64")
TEACHER_RATIO = 15.0
WORDS = {
    "onnxruntime": "ONNX Runtime in process, a thread a core (the limit)",
    "triton": "**Triton, Flyweight's `model.py`**, gRPC",
    "identity": "Triton, identity in its place (the ceiling), gRPC",
    "bare": "Triton, one bare `session.run` in its place, gRPC",
    "triton-http": "Triton, Flyweight's `model.py`, HTTP/1.1",
    "fastapi": "FastAPI, uvicorn, raw bytes, HTTP/1.1",
    "bentoml": "BentoML, raw bytes, HTTP/1.1",
    "mlserver": "MLServer, raw bytes, gRPC",
    "mlserver-batching": "MLServer, raw bytes, adaptive batching, gRPC",
    "teacher": "Triton, `model.py`, the teacher, gRPC",
}


@dataclass(frozen=True)
class Target:
    """Something that was to be reached."""

    target: str
    found: str
    reached: bool


def targets(results: Results) -> list[Target]:
    """Return each target that the measured contenders can speak of."""
    ours = results.get("triton", {})
    found = [_ceiling(level, ours, results, key) for key in CEILINGS if key in results for level in ours]
    for level in AHEAD_AT:
        present = {peer: results[peer][level] for peer in PEERS if level in results.get(peer, {})}
        best = max(present, key=lambda peer: _middle(present[peer], "throughput"), default="")
        found += [_ahead(level, key, best, results) for key in OURS if best and level in results.get(key, {})]
    for level, theirs in results.get("teacher", {}).items():
        if level in ours:
            middle, spread = _ratio(ours[level], theirs, "throughput")
            text = f"proxy against teacher through the server at {level} in flight: at least {TEACHER_RATIO:g} x throughput"
            found.append(Target(text, f"{middle:.1f} x ({spread})", middle >= TEACHER_RATIO))
    return found


def _ceiling(level: str, ours: Mapping[str, Any], results: Results, key: str) -> Target:
    middle, spread = _ratio(ours[level], results[key][level], "throughput")
    text = f"{level} in flight: at least {CEILING:.0%} of {CEILINGS[key]}'s throughput"
    return Target(text, f"{middle:.1%} ({spread})", middle >= CEILING)


def _ahead(level: str, key: str, best: str, results: Results) -> Target:
    ours, theirs = results[key][level], results[best][level]
    more, spread = _ratio(ours, theirs, "throughput")
    slower, slower_spread = _ratio(ours, theirs, "p99_ms")
    by = "the same client" if OURS[key] == PEERS[best] else f"{OURS[key]} to its {PEERS[best]}"
    return Target(
        f"{level} in flight, by {by}: more throughput than the best peer ({best}), p99 no worse",
        f"throughput {more:.2f} x ({spread}), p99 {slower:.2f} x ({slower_spread})",
        more > 1.0 and slower <= 1.0,
    )


def _ratio(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], name: str) -> tuple[float, str]:
    """Return the median over rounds of the ratio within a round, and its range."""
    ratios = [a[name] / b[name] if b[name] else float("inf") for a, b in zip(one, other, strict=True)]
    return median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds"


def _middle(measured: Sequence[Mapping[str, Any]], name: str) -> float:
    return median(one[name] for one in measured)


def markdown(found: Mapping[str, Any]) -> str:
    """Return the page."""
    machine, results = found["machine"], found["results"]
    settings = ", ".join(f"{name} {value}" for name, value in machine["serving"].items())
    models = "; ".join(
        f"{name} `{one['file']}`, {one['bytes']:,} bytes, SHA-256 {one['sha256'][:12]}"
        for name, one in machine["models"].items()
    )
    levels = list(dict.fromkeys(level for one in results.values() for level in one))
    lines = [
        f"# What servers make of one model: {machine['cpu']}, {machine['cores']} cores, {machine['date']}",
        "",
        f"`{' '.join(found['command'])}`: {found['rounds']} rounds of {found['seconds']:g} s each, all servers in turns,",
        "client and servers on the same cores. Medians over the rounds, in brackets the range.",
        "",
        f"- Machine: {machine['cpu']} ({', '.join(machine['flags'])}), {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}, Python {machine['python']}. Load average {machine['load_before'][0]} when it began, "
        f"{machine['load_after'][0]} when it ended (its own work is in that).",
        f"- Models: {models}.",
        f"- Triton: {settings}." + (f" Found by the search: {found['tuning']}" if "tuning" in found else ""),
        f"- Versions: {', '.join(_versions(found['installed'])) or 'no peers'}.",
        "",
        *[line for level in levels for line in _table(level, results)],
        "client and server: cores that they took. MB: resident memory of all processes added up, so that what they share counts",
        "each time. A `!` marks a client that took more than 0.8 of a core: the server may do more.",
        "",
        "## Targets",
        "",
        "| target | found | reached |",
        "|---|---|---|",
        *(
            f"| {one['target']} | {one['found']} | {'yes' if one['reached'] else '**no**'} |"
            for one in found["targets"]
        ),
        "",
        "Ratios are those within a round, and their median counts. Accuracy is not looked at here; `flyweight evaluate` does.",
        "",
        "## Not measured",
        "",
        "- Triton's native backends `onnxruntime` and `tensorrt`: the local server does not have them.",
        *(f"- {WORDS[key].replace('*', '')}: {why}." for key, why in found["missing"].items()),
        "",
    ]
    return "\n".join(lines)


def target_lines(found: Sequence[Target]) -> list[str]:
    """Return a Markdown table of targets."""
    rows = [f"| {one.target} | {one.found} | {'yes' if one.reached else '**no**'} |" for one in found]
    return ["| target | found | reached |", "|---|---|---|", *rows]


def _table(level: str, results: Results) -> list[str]:
    """One level's figures, the most throughput first."""
    there = {key: measured[level] for key, measured in results.items() if level in measured}
    lines = [
        f"## {level} in flight",
        "",
        "| | answers/s | p50 ms | p99 ms | failed | client | server | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(there, key=lambda key: -_middle(there[key], "throughput")):
        one = there[key]
        client, server = _middle(one, "client_cpu"), _middle(one, "server_cpu")
        cells = [
            WORDS[key],
            _spread(one, "throughput", ",.0f"),
            f"{_middle(one, 'p50_ms'):.2f}",
            _spread(one, "p99_ms", ".2f"),
            str(sum(part["failures"] for part in one)),
            f"{client:.2f}{'!' if client > 0.8 else ''}" if client else "–",
            f"{server:.2f}" if server else "–",
            f"{_middle(one, 'rss_mb'):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _spread(measured: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    values = [one[name] for one in measured]
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def _versions(installed: Mapping[str, Sequence[str]]) -> list[str]:
    """The packages that matter of all that is installed for the peers; ONNX Runtime is the same for all."""
    wanted = {"fastapi": ("fastapi", "uvicorn", "onnxruntime"), "bentoml": ("bentoml",), "mlserver": ("mlserver",)}
    return [line for peer, lines in installed.items() for line in lines if line.partition("==")[0] in wanted[peer]]


def figure(found: Mapping[str, Any]) -> Any:
    """Draw p99 against throughput, a line a contender, a point a number of requests in flight."""
    drawn, axes = plots.blank("p99 against throughput (right and down is better)", 7.6, 4.6)
    for place, (key, measured) in enumerate(found["results"].items()):
        across = [_middle(one, "throughput") for one in measured.values()]
        up = [_middle(one, "p99_ms") for one in measured.values()]
        axes.plot(
            across,
            up,
            marker=plots.MARKERS[place % len(plots.MARKERS)],
            color=plots.COLOURS[place % len(plots.COLOURS)],
            linestyle="-" if place < len(plots.COLOURS) else ":",
            linewidth=1.3,
            markersize=5,
            label=key,
        )
        for level, x, y in zip(measured, across, up, strict=True):
            axes.annotate(level, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=plots.GREY)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("good answers a second")
    axes.set_ylabel("p99 in ms")
    axes.legend(fontsize=7.5, frameon=False)
    return drawn


def write(found: Mapping[str, Any], directory: Path, name: str) -> None:
    """Write ``name``.md, .json and .png into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = markdown(found) + f"![p99 against throughput]({name}.png)\n"
    (directory / f"{name}.md").write_text(page, encoding="utf-8")
    plots.png(figure(found), directory / f"{name}.png")
