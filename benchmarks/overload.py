"""What happens when twice as much comes as can be answered? Goodput, refusals, memory and recovery of the local Triton.

    python benchmarks/overload.py                                  the champion of the registry
    python benchmarks/overload.py --model proxy.onnx --seconds 20

First the capacity: good answers a second of a closed loop, before and after. Then an open loop of half of it (the base) runs
all the time, and a surge is added that makes it twice the capacity. Both send when requests are due, whatever comes back, and
latency counts from then (`pipeline.serving.load.open_loop`). When the surge ends the base goes on, so that recovery is that of
a server at work. The server refuses what is beyond `serving.max_queue_size`. A control, the same without that limit,
shows that the check can fail.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from peers import servers
from peers.asking import grpc_numbers
from peers.champion import champion, facts, one_in_one_out, slug
from peers.report import Target, target_lines
from peers.servers import Server

from pipeline.report import plots
from pipeline.serving.load import closed_loop, processes
from pipeline.serving.load.histogram import Histogram
from pipeline.serving.triton.artifact import made_up
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.serving import Serving

MODEL = "proxy"
FACTOR = 2.0
BASE = 0.5
"""Share of the capacity that comes all the time."""
GOODPUT = 0.9
AT_ONCE_MS = 100.0
"""What a refusal may take: 25 ms until the queue is looked at again, and its turn in the queue."""
RECOVERY_S = 2.0
SLOWER = 3.0
"""The server has recovered when p99 is at most so many times that of the base before the surge."""
BOUND = 0.05
"""Share by which memory may be higher at the end."""
TICK_S = 0.25
_QUIET_S, _AFTER_S = 3.0, 4.0
_CLOSED = 64


@dataclass(frozen=True)
class Tick:
    """A stretch of the base load."""

    begin: float
    """Seconds since the surge began."""
    answered: int
    failed: int
    p99_ms: float


@dataclass(frozen=True)
class Overload:
    """What one surge did."""

    limit: int
    capacity: float
    capacity_after: float
    offered: float
    goodput: float
    """Good answers per second to base and surge together, while the surge lasted."""
    answered_p99_ms: float
    """Of the surge's requests that were answered."""
    refused: int
    refused_p50_ms: float
    refused_p99_ms: float
    statuses: Mapping[str, int]
    recovery_s: float
    """From the end of the surge until the base is answered as before; infinite if it was not while we looked."""
    rss_mb: Sequence[float]
    client_cpu: float
    seconds: float
    ticks: Sequence[Tick]


def plan(address: str, seconds: float, windows: int, warmup: float = 0.0, **own: Any) -> dict[str, Any]:
    """Return what one process of the load generator is to do."""
    whole = {"address": address, "window": int(seconds * 1e9 / windows), "windows": windows, "silence": 60.0}
    return {**whole, "warmup": int(warmup * 1e9), **own}


def opened(rate: float, seed: int) -> dict[str, Any]:
    """Return the part of a plan that is an open loop of Poisson arrivals."""
    return {"loop": "open", "rate": rate, "arrivals": "poisson", "seed": seed, "place": 0, "of": 1, "connections": 4}


def capacity(address: str, requests: Sequence[bytes], seconds: float, turns: int) -> list[float]:
    """Return good answers a second of a closed loop, `turns` times."""
    loop = {"loop": "closed", "concurrency": _CLOSED, "connections": closed_loop.connections(_CLOSED)}
    found = []
    for _ in range(turns):
        seen = processes.drive([plan(address, seconds, 3, 0.5, **loop)], requests, until_stable=False)
        found.append(sum(part["answered"] for parts in seen.windows.values() for part in parts) / seconds)
    return found


def overload(artifact: Artifact, serving: Serving, seconds: float, home: Path) -> Overload:
    """Serve `artifact` and put a surge of `seconds` on it."""
    name = f"limit-{serving.max_queue_size}"
    server = servers.triton(name, home, {MODEL: (artifact, serving)})
    try:
        rows = next(iter(made_up(artifact.spec, 64).values()))
        wire = grpc_numbers(server.address("grpc"), MODEL, artifact.spec, rows)
        server.await_answer(lambda: wire.ask(0))
        before = capacity(wire.address, wire.requests, min(3.0, seconds), 3)
        found = _surge(server, wire.address, wire.requests, median(before), seconds)
        after = capacity(wire.address, wire.requests, min(3.0, seconds), 3)
    finally:
        server.stop()
    return Overload(limit=serving.max_queue_size, capacity=median(before), capacity_after=median(after), **found)


def _surge(server: Server, address: str, requests: Sequence[bytes], answers: float, seconds: float) -> dict[str, Any]:
    """Run base and surge and put together what came of them."""
    base_times: list[float] = []
    surge_times: list[float] = []
    base: list[processes.Seen] = []
    count = round((_QUIET_S + seconds + _AFTER_S + 2.0) / TICK_S)
    base_plan = plan(address, count * TICK_S, count, 1.0, **opened(BASE * answers, 1))

    def steady() -> None:
        base.append(
            processes.drive([base_plan], requests, lambda: base_times.append(time.monotonic()), until_stable=False)
        )

    def look() -> float:
        surge_times.append(time.monotonic())
        return server.used().rss_mb

    thread = threading.Thread(target=steady)
    thread.start()
    while not base_times:
        time.sleep(0.01)
    time.sleep(_QUIET_S)
    windows = max(4, round(seconds))
    surge_plan = plan(address, seconds, windows, **opened((FACTOR - BASE) * answers, 2))
    surge = processes.drive([surge_plan], requests, look, until_stable=False)
    thread.join()
    begin, end = surge_times[0], surge_times[-1]
    ticks = _ticks(base[0], base_times[0] - begin)
    parts = [part for parts in surge.windows.values() for part in parts]
    inside = [tick for tick in ticks if tick.begin >= 0 and tick.begin + TICK_S <= end - begin]
    answered = sum(part["answered"] for part in parts) / seconds
    latencies, refused, statuses = Histogram(), Histogram(), Counter[str]()
    for part in parts:
        latencies.add(Histogram.from_json(part["latencies"]))
        refused.add(Histogram.from_json(part["refused"]))
        statuses.update(part["failures"])
    return {
        "offered": FACTOR * answers,
        "goodput": answered + sum(tick.answered for tick in inside) / max(TICK_S, len(inside) * TICK_S),
        "answered_p99_ms": latencies.percentile(0.99) / 1e6,
        "refused": len(refused),
        "refused_p50_ms": refused.percentile(0.5) / 1e6,
        "refused_p99_ms": refused.percentile(0.99) / 1e6,
        "statuses": dict(statuses),
        "recovery_s": recovery(ticks, end - begin),
        "rss_mb": list(surge.snapshots),
        "client_cpu": sum(part["busy"] for part in parts) / seconds,
        "seconds": seconds,
        "ticks": ticks,
    }


def _ticks(seen: processes.Seen, first: float) -> list[Tick]:
    """Return the windows of the base; the first began at `first`, seconds since the surge began."""
    found = []
    for number in sorted(seen.windows):
        (part,) = seen.windows[number]
        p99 = Histogram.from_json(part["latencies"]).percentile(0.99) / 1e6
        found.append(Tick(first + number * TICK_S, part["answered"], sum(part["failures"].values()), p99))
    return found


def recovery(ticks: Sequence[Tick], end: float) -> float:
    """Return the seconds from `end` until the base is answered as before the surge and stays so; infinity if never.

    As before is: nothing fails, and p99 of a tick is at most SLOWER times the median tick's of before.
    """
    before = median(tick.p99_ms for tick in ticks if tick.begin + TICK_S <= 0)
    bad = [tick for tick in ticks if tick.begin + TICK_S > end and (tick.failed or tick.p99_ms > SLOWER * before)]
    if not bad:
        return 0.0
    return bad[-1].begin + TICK_S - end if bad[-1] is not ticks[-1] else float("inf")


def flat(sizes: Sequence[float]) -> bool:
    """Return whether the last quarter is not above the quarter before the middle by more than BOUND, each by its median."""
    quarter, middle = max(1, len(sizes) // 4), len(sizes) // 2
    return median(sizes[-quarter:]) <= median(sizes[middle - quarter : middle]) * (1 + BOUND)


def targets(one: Overload) -> list[Target]:
    """Return what was to be reached, and whether it was."""
    able = median([one.capacity, one.capacity_after])
    share = one.goodput / able
    only = set(one.statuses) <= {"UNAVAILABLE"}
    said = ", ".join(f"{count:,} {status}" for status, count in one.statuses.items()) or "none"
    return [
        Target(
            f"goodput at {FACTOR:g} x capacity: at least {GOODPUT:.0%} of capacity",
            f"{share:.1%} ({one.goodput:,.0f} of {able:,.0f} answers/s; {one.offered:,.0f} requests/s)",
            share >= GOODPUT,
        ),
        Target(
            f"the rest is refused at once (99 % within {AT_ONCE_MS:g} ms), as UNAVAILABLE alone",
            f"{said}; p50 {one.refused_p50_ms:.0f} ms, p99 {one.refused_p99_ms:.0f} ms",
            bool(one.refused) and only and one.refused_p99_ms <= AT_ONCE_MS,
        ),
        Target(
            f"memory flat within {BOUND:.0%} during the surge",
            f"{one.rss_mb[0]:.0f} MB at its beginning, {one.rss_mb[len(one.rss_mb) // 2]:.0f} in its middle, "
            f"{one.rss_mb[-1]:.0f} at its end",
            flat(one.rss_mb),
        ),
        Target(
            f"recovered within {RECOVERY_S:g} s of its end, {BASE:.0%} of capacity going on",
            f"{one.recovery_s:.2f} s",
            one.recovery_s <= RECOVERY_S,
        ),
    ]


def markdown(found: Mapping[str, Any], limited: Overload, control: Overload) -> str:
    """Return the page."""
    machine = found["machine"]
    settings = ", ".join(f"{name} {value}" for name, value in machine["serving"].items())
    model = machine["models"]["proxy"]
    failed = [one.target for one in targets(control) if not one.reached]
    lines = [
        f"# Twice the capacity: {machine['cpu']}, {machine['cores']} cores, {machine['date']}",
        "",
        f"`{' '.join(found['command'])}`; {limited.seconds:g} s of surge, client and server on the same cores.",
        "",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}. Load average "
        f"{machine['load_before'][0]} when it began.",
        f"- Model: `{model['file']}`, {model['bytes']:,} bytes, SHA-256 {model['sha256'][:12]}.",
        f"- Triton 2.51, `model.py`: {settings}, max_queue_size {limited.limit}.",
        f"- Capacity, {_CLOSED} in flight: {limited.capacity:,.0f} answers/s before, {limited.capacity_after:,.0f} after. The surge's "
        f"generator took {limited.client_cpu:.2f} of a core.",
        f"- Requests of the surge that were answered: p99 {limited.answered_p99_ms:.0f} ms.",
        "",
        *target_lines(targets(limited)),
        "",
        f"Control, the same for {control.seconds:g} s without a limit: goodput {control.goodput:,.0f}/s, p99 of the answered "
        f"{control.answered_p99_ms:,.0f} ms, {control.refused:,} refused, recovered after {control.recovery_s:.2f} s. "
        f"Missed there: {'; '.join(failed) or 'nothing'}.",
        "",
    ]
    return "\n".join(lines)


def figure(limited: Overload, control: Overload) -> Any:
    """Draw the base's p99 over time, with and without the limit."""
    drawn, axes = plots.blank("p99 of the base load around a surge", 7.6, 4.0)
    for place, (one, label) in enumerate(((limited, f"max_queue_size {limited.limit}"), (control, "no limit"))):
        answered = [tick for tick in one.ticks if tick.answered and tick.p99_ms != float("inf")]
        axes.plot(
            [tick.begin for tick in answered],
            [tick.p99_ms for tick in answered],
            color=plots.COLOURS[place],
            linewidth=1.4,
            label=label,
        )
        axes.axvspan(0, one.seconds, color=plots.COLOURS[place], alpha=0.08)
    axes.set_yscale("log")
    axes.set_xlabel("seconds since the surge began (its time is shaded)")
    axes.set_ylabel("p99 in ms")
    axes.legend(fontsize=8, frameon=False)
    return drawn


def main(arguments: Sequence[str]) -> int:
    """Measure, write Markdown, JSON and a plot, print the page; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="ONNX file; the registry's champion if left out")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the surge")
    parser.add_argument("--limit", type=int, default=64, help="serving.max_queue_size")
    parser.add_argument("--instances", type=int, default=Serving().instances, help="serving.instances")
    parser.add_argument("--batch", type=int, default=Serving().max_batch_size, help="serving.max_batch_size")
    parser.add_argument("--name", help="of the files that are written; by default overload_CPU_MONTH")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where they are written")
    chosen = parser.parse_args(arguments)
    serving = Serving(instances=chosen.instances, max_batch_size=chosen.batch, max_queue_size=chosen.limit)
    with tempfile.TemporaryDirectory(prefix="flyweight-champion-") as scratch:
        artifact = one_in_one_out((chosen.model or champion(Path(scratch))).resolve())
        command = [Path(one).name if "/" in one else one for one in arguments]
        found: dict[str, Any] = {
            "command": ["python", "benchmarks/overload.py", *command],
            "machine": facts({"proxy": artifact}, serving),
        }
        with servers.own_home() as home:
            limited = overload(artifact, serving, chosen.seconds, home)
            without = serving.model_copy(update={"max_queue_size": 0})
            control = overload(artifact, without, chosen.seconds / 4, home)
    found |= {"limited": asdict(limited), "control": asdict(control)}
    found["targets"] = [asdict(one) for one in targets(limited)]
    name = chosen.name or f"overload_{slug()}_{time.strftime('%Y%m')}"
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = markdown(found, limited, control)
    (chosen.out / f"{name}.md").write_text(page + f"\n![p99 around a surge]({name}.png)\n", encoding="utf-8")
    plots.png(figure(limited, control), chosen.out / f"{name}.png")
    print(page)
    return 0 if all(one.reached for one in targets(limited)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
