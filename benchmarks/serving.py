"""How much of its machine does a server turn into answers? Triton with Flyweight's model.py beside its own ceiling and peers.

    python benchmarks/serving.py                                        the champion of the registry
    python benchmarks/serving.py --model proxy.onnx --teacher teacher.onnx --tune 0.5
    python benchmarks/serving.py --model proxy.onnx --rounds 1 --seconds 0.3 --only triton,identity --out /tmp

One run on one machine, the same model file, the same ONNX Runtime, the same client program. The contenders:

- `onnxruntime`: the session in a process of its own, no server: the limit.
- `triton`: the local Triton with Flyweight's model.py, over gRPC. `triton-http`: the same server, over HTTP/1.1.
- `identity`: the same Triton and config with peers/identity.py in the place of model.py, which computes nothing: the
  ceiling of the Python backend. `bare`: likewise with peers/bare.py, which runs the network and takes no care.
- `fastapi`, `bentoml`, `mlserver`, `mlserver-batching`: the peers, as many workers as cores, bodies of raw bytes.
- `teacher`: the teacher in a Triton like the proxy's.

The client is one process that keeps requests in flight and parses as little as can be: HTTP/2 as `flyweight load` speaks it,
HTTP/1.1 in peers/http1.py. Its share of a core is in the table. All servers run all the time, and answer one after another in turns,
forth in one round and back in the next, so that whatever else the machine does hits all alike. Before anything is timed,
each must answer the same 64 images, 16 at a time, as ONNX Runtime in this process does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import report, servers
from peers.asking import Wire, grpc_bytes, grpc_numbers, http_bytes, http_triton
from peers.champion import champion, facts, one_in_one_out, slug
from peers.environments import PeerError, environment, installed
from peers.http1 import request as http_request
from peers.servers import Server

from pipeline.machine.cpu import cores
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.load import closed_loop, tuning_run
from pipeline.serving.load.histogram import Histogram
from pipeline.serving.load.processes import WINDOWS, drive
from pipeline.serving.load.tuning import TUNED
from pipeline.serving.triton.artifact import made_up
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.gate import Budget
from pipeline.settings.serving import Promote, Serving

ROWS = 64
"""Different requests that are sent in turn, and checked."""
TOLERANCE = 1e-3
"""Answers may differ from ONNX Runtime's here by this share of the largest: batches of another size add in another order."""
MODEL = "proxy"
KEYS = (
    "onnxruntime",
    "triton",
    "identity",
    "bare",
    "triton-http",
    "fastapi",
    "bentoml",
    "mlserver",
    "mlserver-batching",
    "teacher",
)
TRITON, IDENTITY, BARE, TEACHER = "triton", "identity", "bare", "teacher"


@dataclass(frozen=True)
class Contender:
    """Something that answers."""

    key: str
    wire: Wire | None
    """How it is asked; None where no server is asked."""
    server: Server | None
    levels: Sequence[int]
    """Requests in flight at which it is measured."""


@dataclass(frozen=True)
class Figures:
    """One measurement."""

    throughput: float
    """Good answers per second."""
    p50_ms: float
    p99_ms: float
    failures: int
    client_cpu: float
    """Cores that the client took; 0 without one."""
    server_cpu: float
    """Cores that the server took; 0 where it was not counted."""
    rss_mb: float
    """Resident memory of the server's processes, added up: pages that they share count each time."""
    processes: int


def measure(contender: Contender, artifact: Artifact, rows: NDArray, level: int, seconds: float) -> Figures:
    """Put a closed loop of `level` requests in flight on a contender, after a warm-up."""
    warmup = min(0.5, seconds)
    if contender.wire is None or contender.server is None:
        return _in_process(artifact, rows, level, seconds, warmup)
    plan: dict[str, Any] = {
        "address": contender.wire.address,
        "window": int(seconds * 1e9 / WINDOWS),
        "windows": WINDOWS,
        "warmup": int(warmup * 1e9),
        "silence": 30.0,
        "loop": "closed",
        "concurrency": level,
        "connections": closed_loop.connections(level),
        **({"program": str(servers.PEERS / "http1.py")} if contender.wire.http else {}),
    }
    seen = drive([plan], contender.wire.requests, contender.server.used, until_stable=False)
    latencies, parts = Histogram(), [part for number in range(WINDOWS) for part in seen.windows[number]]
    for part in parts:
        latencies.add(Histogram.from_json(part["latencies"]))
    before, after = seen.snapshots[0], seen.snapshots[-1]
    p50, p99 = (value / 1e6 for value in latencies.percentiles((0.5, 0.99)))
    return Figures(
        throughput=sum(part["answered"] for part in parts) / seconds,
        p50_ms=p50,
        p99_ms=p99,
        failures=sum(sum(part["failures"].values()) for part in parts),
        client_cpu=sum(part["busy"] for part in parts) / seconds,
        server_cpu=(after.cpu - before.cpu) / seconds,
        rss_mb=after.rss_mb,
        processes=after.processes,
    )


def _in_process(artifact: Artifact, rows: NDArray, level: int, seconds: float, warmup: float) -> Figures:
    with tempfile.TemporaryDirectory(prefix="flyweight-limit-") as name:
        (Path(name) / "rows").write_bytes(rows.tobytes())
        plan = {
            "model": str(artifact.onnx),
            "rows": str(Path(name) / "rows"),
            "row_bytes": rows[0].nbytes,
            "cores": cores(),
            "concurrency": level,
            "seconds": seconds,
            "warmup": warmup,
        }
        (Path(name) / "plan").write_text(json.dumps(plan), encoding="utf-8")
        line = [sys.executable, str(servers.PEERS / "in_process.py"), str(Path(name) / "plan")]
        found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    return Figures(failures=0, client_cpu=0.0, server_cpu=0.0, processes=1, **found)


def check(contender: Contender, expected: NDArray) -> float:
    """Return the largest difference from `expected` as a share of its largest value, of all rows asked 16 at a time.

    Raises `SystemExit` where it is beyond `TOLERANCE`. The identity has nothing to be right about but the shape.
    """
    wire = contender.wire
    if wire is None:
        return 0.0
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(wire.ask, range(len(expected))))
    if contender.key == IDENTITY:
        expected = np.zeros_like(expected)
    got = np.stack([np.frombuffer(answer, expected.dtype) for answer in answers])
    difference = float(np.abs(got.reshape(expected.shape) - expected).max() / max(np.abs(expected).max(), 1e-9))
    if not difference <= TOLERANCE:
        raise SystemExit(f"{contender.key} answers wrongly: off by {difference:.1%} of the largest value")
    return difference


@contextlib.contextmanager
def contenders(
    wanted: Sequence[str],
    levels: Sequence[int],
    artifact: Artifact,
    teacher: Artifact | None,
    serving: Serving,
    rows: NDArray,
    home: Path,
    environments: Mapping[str, Path],
    missing: dict[str, str],
) -> Iterator[list[Contender]]:
    """Start all that are `wanted`, and end them after the block. What does not start is put into `missing`."""
    found: list[Contender] = []
    with contextlib.ExitStack() as stack:

        def add(
            key: str, start: Callable[[], Server], wire: Callable[[Server], Wire], at: Sequence[int] = levels
        ) -> None:
            if key not in wanted:
                return
            try:
                server = start()
                stack.callback(server.stop)
                made = wire(server)
                server.await_answer(lambda: made.ask(0))
            except PeerError as error:
                missing[key] = str(error).strip().splitlines()[0]
                return
            found.append(Contender(key, made, server, at))

        def grpc(of: Artifact) -> Callable[[Server], Wire]:
            return lambda server: grpc_numbers(server.address("grpc"), MODEL, of.spec, rows)

        workers, source = cores(), artifact.onnx
        if "onnxruntime" in wanted:
            found.append(Contender("onnxruntime", None, None, levels))
        add(TRITON, lambda: servers.triton(TRITON, home, {MODEL: (artifact, serving)}), grpc(artifact))
        for instead in (IDENTITY, BARE):
            add(
                instead,
                lambda instead=instead: servers.triton(instead, home, {MODEL: (artifact, serving)}, instead),  # type: ignore[misc]
                grpc(artifact),
            )
        first = next((one.server for one in found if one.key == TRITON), None)
        if first and "triton-http" in wanted:
            found.append(
                Contender("triton-http", http_triton(first.address("http"), MODEL, artifact.spec, rows), first, levels)
            )
        plain = {"Content-Type": "application/octet-stream"}
        bodies = [http_request("/predict", row.tobytes(), plain) for row in rows]

        def over_http(server: Server) -> Wire:
            return http_bytes(server.address("http"), bodies)

        def elements(server: Server) -> Wire:
            return grpc_bytes(server.address("grpc"), MODEL, [row.tobytes() for row in rows])

        for key, batch in (("mlserver", 0), ("mlserver-batching", serving.max_batch_size)):
            if key in wanted and "mlserver" in environments:
                add(
                    key,
                    lambda batch=batch: servers.mlserver(environments["mlserver"], home, source, workers, batch),  # type: ignore[misc]
                    elements,
                )
        for key, start in (("fastapi", servers.fastapi), ("bentoml", servers.bentoml)):
            if key in environments:
                add(key, lambda key=key, start=start: start(environments[key], home, source, workers), over_http)  # type: ignore[misc]
        if teacher is not None and TEACHER in wanted:
            top = [max(levels)]
            add(TEACHER, lambda: servers.triton(TEACHER, home, {MODEL: (teacher, serving)}), grpc(teacher), top)
        yield sorted(found, key=lambda one: KEYS.index(one.key))


def tuned(artifact: Artifact, serving: Serving, level: int, seconds: float, home: Path) -> tuple[Serving, str]:
    """Return the settings that `flyweight tune-serving` would choose for `level` requests in flight, and how it ended."""
    server = servers.triton("tuning", home, {})
    changes = {
        "FLYWEIGHT_TRITON_REPOSITORY": str(home / "tuning" / "triton_repo"),
        "FLYWEIGHT_TRITON_GRPC": server.address("grpc"),
    }
    os.environ.update(changes)
    try:
        with Client() as client:
            server.await_answer(client.server_version)
        found = tuning_run.search(serving, Budget(at_concurrency=level), Promote(), artifact, seconds)
    finally:
        server.stop()
        for key in changes:
            del os.environ[key]
    return found.chosen, found.sentence


def main(arguments: Sequence[str]) -> int:
    """Measure, write Markdown, JSON and a plot, print the table; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="ONNX file of the proxy; the registry's champion if left out")
    parser.add_argument("--teacher", type=Path, help="ONNX file of the teacher; no comparison if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--only", default=",".join(KEYS), help=f"some of {','.join(KEYS)}")
    parser.add_argument(
        "--tune", type=float, metavar="SECONDS", help="search serving settings first, so long a measurement"
    )
    for name in TUNED:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="as serving." + name)
    parser.add_argument("--name", help="of the files that are written; by default serving_CPU_MONTH")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where they are written")
    chosen = parser.parse_args(arguments)
    wanted = chosen.only.split(",")
    if unknown := set(wanted) - set(KEYS):
        parser.error(f"--only knows {', '.join(KEYS)}, not {', '.join(sorted(unknown))}")
    settings = {name: getattr(chosen, name) for name in TUNED}
    serving = Serving(**{name: value for name, value in settings.items() if value is not None})
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flyweight-champion-")))
        artifact = one_in_one_out((chosen.model or champion(scratch)).resolve())
        teacher = one_in_one_out(chosen.teacher.resolve()) if chosen.teacher else None
        missing: dict[str, str] = {}
        environments = _environments(wanted, missing)
        home = stack.enter_context(servers.own_home())
        found: dict[str, Any] = {"command": ["python", "benchmarks/serving.py", *_public(arguments)]}
        if chosen.tune:
            serving, found["tuning"] = tuned(artifact, serving, max(chosen.concurrency), chosen.tune, home)
            print(found["tuning"], file=sys.stderr, flush=True)
        found |= {
            "machine": facts({"proxy": artifact, **({TEACHER: teacher} if teacher else {})}, serving),
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
        }
        found["installed"] = {peer: installed(directory) for peer, directory in environments.items()}
        rows = next(iter(made_up(artifact.spec, ROWS).values()))
        running = stack.enter_context(
            contenders(wanted, chosen.concurrency, artifact, teacher, serving, rows, home, environments, missing)
        )
        found["largest_difference"] = _checked(running, artifact, teacher, rows)
        found["results"] = _rounds(running, artifact, rows, chosen)
    found["machine"]["load_after"] = [round(part, 2) for part in os.getloadavg()]
    if teacher is None and TEACHER in wanted:
        missing[TEACHER] = "no --teacher was given"
    found["missing"] = missing
    found["targets"] = [dataclasses.asdict(one) for one in report.targets(found["results"])]
    report.write(found, chosen.out, chosen.name or f"serving_{slug()}_{time.strftime('%Y%m')}")
    print(report.markdown(found))
    return 0 if all(one["reached"] for one in found["targets"]) else 1


def _environments(wanted: Sequence[str], missing: dict[str, str]) -> dict[str, Path]:
    found = {}
    for peer in ("fastapi", "bentoml", "mlserver"):
        keys = [key for key in wanted if key.partition("-")[0] == peer]
        if not keys:
            continue
        try:
            found[peer] = environment(peer)
        except PeerError as error:
            missing.update(dict.fromkeys(keys, str(error).strip().splitlines()[-1]))
    return found


def _checked(
    running: Sequence[Contender], artifact: Artifact, teacher: Artifact | None, rows: NDArray
) -> dict[str, float]:
    expected = {}
    for name, one in (("proxy", artifact), (TEACHER, teacher)):
        if one is not None:
            runner = OnnxRunner(one.onnx, 1)
            parts = [runner({one.spec.inputs[0].name: row[None]})[one.spec.outputs[0].name] for row in rows]
            runner.close()
            expected[name] = np.concatenate(parts)
    return {one.key: check(one, expected[TEACHER if one.key == TEACHER else "proxy"]) for one in running if one.wire}


def _rounds(
    running: Sequence[Contender], artifact: Artifact, rows: NDArray, chosen: argparse.Namespace
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return key -> level -> a measurement a round."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {one.key: {} for one in running}
    for number in range(chosen.rounds):
        for level in chosen.concurrency:
            for one in running if number % 2 == 0 else reversed(running):
                if level not in one.levels:
                    continue
                figures = measure(one, artifact, rows, level, chosen.seconds)
                results[one.key].setdefault(str(level), []).append(dataclasses.asdict(figures))
                print(
                    f"round {number + 1} of {chosen.rounds}, {level:>3} in flight, {one.key:<18}"
                    f"{figures.throughput:>9,.0f}/s, p99 {figures.p99_ms:8.2f} ms, client {figures.client_cpu:.0%} of a core",
                    file=sys.stderr,
                    flush=True,
                )
    return results


def _public(arguments: Sequence[str]) -> list[str]:
    """The arguments without directories, which are nobody's business."""
    return [Path(one).name if "/" in one else one for one in arguments]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
