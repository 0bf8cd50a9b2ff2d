"""The load generator's processes: started side by side, read window by window, ended when the figures are stable."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from pipeline.machine.workspace import SOURCE
from pipeline.serving.load.generator import REQUESTS_FILE
from pipeline.serving.load.histogram import Histogram

WINDOWS = 3
"""Windows of a measurement, and of the stability check."""
LARGEST_SPREAD = 1.1
"""Largest ratio of the windows' extremes that still counts as stable."""
SILENCE_SECONDS = 30.0
Watch: TypeAlias = Callable[[float], None]
"""Called after each window with the share of the measurement that is behind us."""


class LoadError(RuntimeError):
    """The load generator could not go on: the connection was lost, or the server fell silent."""


@dataclass(frozen=True)
class Seen:
    """What the generator's processes have seen together, and what was read of the server at the windows' ends."""

    windows: Mapping[int, list[Mapping[str, Any]]]
    """By number: what each process says of it."""
    late: Histogram
    stable: bool
    snapshots: Sequence[Any]
    """Before the first window and after each."""


def drive(
    plans: Sequence[Mapping[str, Any]],
    requests: Sequence[bytes],
    snapshot: Callable[[], Any] = lambda: None,
    watch: Watch | None = None,
    until_stable: bool = True,
) -> Seen:
    """Run one generator process per plan, side by side, until the last windows are stable or the plans end.

    Args:
        plans: what each process is to do. One with a ``program`` is run by that Python file in the generator's place,
            which must read and print the same lines.
        requests: what is sent in turn.
        snapshot: is called at the beginning of the first window and at each window's end.
        watch: is called with how far it is.
        until_stable: whether stable windows end it early.
    """
    last, window = int(plans[0]["windows"]), float(plans[0]["window"])
    with _generators(plans, requests) as generators:
        begin = time.perf_counter_ns() + 1_000_000
        for generator in generators:
            generator.send(f"{begin}\n")
        recent: list[tuple[float, float]] = []
        snapshots = []
        for number in range(-1, last):
            lines = [generator.read() for generator in generators]
            snapshots.append(snapshot())
            if number < 0:
                continue
            answered = sum(line["answered"] for line in lines)
            recent.append((answered / window, sum(line["waited"] for line in lines) / max(1, answered)))
            if watch:
                watch((number + 1) / last)
            if until_stable and is_stable(recent):
                break
        for generator in generators:
            generator.send(None)
        found = [generator.read() for generator in generators]
    if watch:
        watch(1.0)
    late = Histogram()
    for one in found:
        late.add(Histogram.from_json(one["late"]))
    windows = {number: [one["windows"][str(number)] for one in found] for number in range(len(recent))}
    return Seen(windows, late, is_stable(recent), snapshots)


def is_stable(windows: Sequence[tuple[float, ...]]) -> bool:
    """Return whether each figure of the last three windows stays within `LARGEST_SPREAD`; never for fewer.

    So does perf_analyzer
    (https://github.com/triton-inference-server/perf_analyzer/blob/main/docs/measurements_metrics.md).
    """
    last = windows[-WINDOWS:]
    if len(last) < WINDOWS:
        return False
    return all(min(figure) > 0 and max(figure) <= LARGEST_SPREAD * min(figure) for figure in zip(*last, strict=True))


class _Generator:
    """One process of the load generator."""

    def __init__(self, plan_file: Path, address: str, program: str | None) -> None:
        self._address, self._errors = address, plan_file.with_suffix(".errors")
        path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *([program] if program else ["-m", "pipeline.serving.load.generator"]),
                    str(plan_file),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )

    def read(self) -> dict[str, Any]:
        """Return the next line. Raises `LoadError` where the process ended instead."""
        out: IO[str] = self._process.stdout  # type: ignore[assignment]
        line = out.readline()
        if not line:
            last = self._errors.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no reason given"]
            raise LoadError(f"the load generator could not go on against Triton at {self._address}: {last[0]}")
        return dict(json.loads(line))

    def send(self, line: str | None) -> None:
        """Send a line; None says that it is enough."""
        into = self._process.stdin
        if into is None:
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended: `read` says why
            if line is None:
                self._process.stdin = None
                into.close()
            else:
                into.write(line)
                into.flush()

    def end(self) -> None:
        """Let it wait for its last answers (a client that goes away can crash Triton) and end."""
        self.send(None)
        try:
            self._process.communicate(timeout=SILENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def _generators(plans: Sequence[Mapping[str, Any]], requests: Sequence[bytes]) -> Iterator[list[_Generator]]:
    """Start one connected process per plan; none is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="flyweight-load-") as directory, contextlib.ExitStack() as stack:
        with (Path(directory) / REQUESTS_FILE).open("wb") as file:
            file.writelines(requests)
        sizes = [len(request) for request in requests]
        generators = []
        for place, plan in enumerate(plans):
            plan_file = Path(directory) / f"{place}.json"
            plan_file.write_text(json.dumps({**plan, "sizes": sizes}), encoding="utf-8")
            generators.append(_Generator(plan_file, str(plan["address"]), plan.get("program")))
            stack.callback(generators[-1].end)
        for generator in generators:
            generator.read()
        yield generators
