"""The load generator's own process: requests go out as a plan says, and each answer is timed.

Started by `pipeline.serving.load.processes` as ``python -m pipeline.serving.load.generator PLAN``. It connects, prints a line, waits
until it hears when to begin, prints a line (JSON) at the end of each window, and last a line with all it has seen. It
ends on its own after the last window, or when its standard input is closed. Knows the standard library alone, so that it
starts at once and leaves the processor to the server.

Each request belongs to the window in which it was *due*, whenever its answer comes, so none is left out for being slow.
"""

from __future__ import annotations

import json
import selectors
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.serving.load.histogram import Histogram
from pipeline.serving.load.http2 import STATUS, Connection, prefixed

REQUESTS_FILE = "requests"
"""Beside the plan: all serialised requests, one behind the other."""
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Window:
    """What belongs to one stretch of time."""

    latencies: Histogram = field(default_factory=Histogram)
    """Nanoseconds from when a request was due to the end of its answer, of answered requests that were due in it."""
    failures: Counter[str] = field(default_factory=Counter)
    """gRPC status -> failed requests that were due in it."""
    refused: Histogram = field(default_factory=Histogram)
    """The same nanoseconds of those failed requests: how long it took to hear of it."""
    answered: int = 0
    """Good answers that arrived in it."""
    waited: int = 0
    """Nanoseconds that those had taken, summed."""
    busy: float = 0.0
    """Seconds of processor time that the generator took in it."""


@dataclass
class Line:
    """A connection, and when each request that is under way on it was due."""

    connection: Connection
    due: dict[int, int] = field(default_factory=dict)


class Traffic:
    """Requests over some connections, and what came of them, window by window.

    Args:
        address: ``host:port`` of the server.
        connections: how many to open.
        messages: serialised requests, sent in turn.
        silence: longest time in seconds without any answer before `TimeoutError`.
        control: a file whose end means that it is enough; None for none.
        say: gets a line at the end of each window.
        tls: files for encrypted connections; none for none.
    """

    def __init__(
        self,
        address: str,
        connections: int,
        messages: Sequence[bytes],
        silence: float,
        control: IO[str] | None = None,
        say: Callable[[Mapping[str, Any]], None] = lambda line: None,
        tls: Mapping[str, Any] | None = None,
    ) -> None:
        self.lines = [Line(Connection(address, METHOD, silence, tls)) for _ in range(connections)]
        self.windows: defaultdict[int, Window] = defaultdict(Window)
        """By number; negative ones are before the measurement, and are not counted."""
        self.late = Histogram()
        """Nanoseconds between when requests were due and when they were sent, of those due in the measurement."""
        self.end = 0
        """When the last window ends, on the clock of `time.perf_counter_ns`."""
        self.under_way = 0
        self._stopped = False
        self._messages = [prefixed(message) for message in messages]
        self._next = 0
        self._silence = int(silence * 1e9)
        self._say = say
        # select(2) and not epoll, whose timeouts are whole milliseconds
        self._selector = selectors.SelectSelector()
        for line in self.lines:
            self._selector.register(line.connection, selectors.EVENT_READ, line)
        if control is not None:
            self._selector.register(control, selectors.EVENT_READ)

    def begin(self, start: int, window: int, windows: int) -> None:
        """Measure in `windows` windows of `window` ns from `start` on; what is due before is warm-up."""
        self._start, self._window, self.end = start, window, start + windows * window
        self._boundary, self._number = start, -1
        self._heard, self._busy = time.perf_counter_ns(), time.process_time()

    def goes_on(self, now: int) -> bool:
        """Return whether more requests are wanted at `now`; closes the windows that have ended."""
        while now >= self._boundary and self._boundary <= self.end:
            self._close_window()
        return now < self.end and not self._stopped

    def send(self, line: Line, due: int) -> None:
        """Queue a request that was or is `due`; `line.connection.flush()` sends it."""
        if not self.under_way:  # a server that was asked nothing is not silent
            self._heard = time.perf_counter_ns()
        line.due[line.connection.call(self._messages[self._next])] = due
        self._next = (self._next + 1) % len(self._messages)
        self.under_way += 1

    def receive(self, until: int) -> list[tuple[Line, int]]:
        """Wait for answers, at most `until` then or the end of the window; return who had some, and how many."""
        until = min(until, self._boundary)
        if self.under_way:
            until = min(until, self._heard + self._silence)
        ready = self._selector.select(max(0.0, (until - time.perf_counter_ns()) * 1e-9))
        found = []
        for key, _ in ready:
            line = key.data
            if line is None:
                self._selector.unregister(key.fileobj)
                self._stopped = True
                continue
            ended = line.connection.receive()
            self._heard = time.perf_counter_ns()
            self._count(line.due, ended, self._heard)
            found.append((line, len(ended)))
        if not ready and self.under_way and time.perf_counter_ns() - self._heard >= self._silence:
            raise TimeoutError(f"no answer within {self._silence * 1e-9:g} s")
        return found

    def drain(self) -> None:
        """Wait until nothing is under way.

        Triton up to 24.12 can crash when a client goes away at the moment its request is answered
        (https://github.com/triton-inference-server/server/issues/8034).
        """
        self._boundary = sys.maxsize
        while self.under_way:
            self.receive(time.perf_counter_ns() + self._silence)

    def close(self) -> None:
        """Let go of the connections."""
        for line in self.lines:
            line.connection.close()

    def _count(self, due: dict[int, int], ended: Sequence[tuple[int, int]], now: int) -> None:
        windows, start, window = self.windows, self._start, self._window
        arrived = windows[(now - start) // window]
        self.under_way -= len(ended)
        for stream, status in ended:
            when = due.pop(stream)
            if status == 0:
                windows[(when - start) // window].latencies.record(now - when)
                arrived.answered += 1
                arrived.waited += now - when
            else:
                name = STATUS[status] if status < len(STATUS) else str(status)
                due_in = windows[(when - start) // window]
                due_in.failures[name] += 1
                due_in.refused.record(now - when)

    def _close_window(self) -> None:
        busy = time.process_time()
        window = self.windows[self._number]
        window.busy, self._busy = busy - self._busy, busy
        self._say({"window": self._number, "answered": window.answered, "waited": window.waited})
        self._number += 1
        self._boundary += self._window

    def to_json(self) -> dict[str, Any]:
        """Return what was seen as plain data: the windows of the measurement by number, and `late`."""
        windows = {
            number: {
                "latencies": window.latencies.to_json(),
                "failures": window.failures,
                "refused": window.refused.to_json(),
                "answered": window.answered,
                "busy": window.busy,
            }
            for number, window in self.windows.items()
            if 0 <= number < self._number
        }
        return {"windows": windows, "late": self.late.to_json()}


def read_requests(plan_file: Path, sizes: Sequence[int]) -> list[bytes]:
    """Return the requests that stand beside a plan; `sizes` are in bytes."""
    with (plan_file.parent / REQUESTS_FILE).open("rb") as file:
        return [file.read(size) for size in sizes]


def main(plan_file: Path) -> None:
    """Run the plan in `plan_file`."""
    from pipeline.serving.load import closed_loop, open_loop

    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    run = {"closed": closed_loop.run, "open": open_loop.run}[plan["loop"]]
    messages = read_requests(plan_file, plan["sizes"])
    traffic = Traffic(
        plan["address"], plan["connections"], messages, plan["silence"], sys.stdin, _print, plan.get("tls")
    )
    _print({"connected": len(traffic.lines)})
    begin = int(sys.stdin.readline())
    traffic.begin(begin + plan["warmup"], plan["window"], plan["windows"])
    run(traffic, begin, plan)
    traffic.drain()
    traffic.close()
    _print(traffic.to_json())


def _print(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
