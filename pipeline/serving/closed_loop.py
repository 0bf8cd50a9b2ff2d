"""The load generator's own process: so many requests in flight, each answer followed by the next request.

Started by `pipeline.serving.load` as ``python -m pipeline.serving.closed_loop PLAN``; prints its result as JSON. Knows
the standard library alone, so that it starts at once and leaves the processor to the server.
"""

from __future__ import annotations

import json
import selectors
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.serving.http2 import STATUS, Connection, prefixed

METHOD = "/inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT_EACH = 16
"""Requests that share one connection, as a balancer or a busy client would have it."""


@dataclass
class Loop:
    """A closed loop over some connections, and what it has seen since `forget`."""

    messages: list[bytes]
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._started: dict[tuple[int, int], float] = {}
        self._next = 0

    def open(self, address: str, concurrency: int, timeout: float) -> None:
        """Connect and send the first `concurrency` requests."""
        connections = -(-concurrency // IN_FLIGHT_EACH)
        for index in range(connections):
            connection = Connection(address, METHOD, timeout)
            self._selector.register(connection, selectors.EVENT_READ)
            self._send(connection, concurrency // connections + (index < concurrency % connections))
        self._timeout = timeout

    def run(self, seconds: float) -> float:
        """Answer each answer with the next request for `seconds`; return how long it really took."""
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for connection, answers in self._receive():
                self._send(connection, answers)
        return now - begin

    def drain(self) -> None:
        """Wait until nothing is in flight.

        Triton up to 24.12 can crash when a client goes away at the moment its request is answered
        (https://github.com/triton-inference-server/server/issues/8034).
        """
        while self._started:
            self._receive()

    def forget(self) -> None:
        """Start counting anew."""
        self.latencies.clear()
        self.failures.clear()

    def _receive(self) -> list[tuple[Connection, int]]:
        """Wait for answers and count them; return each connection that had some, and how many."""
        ready = self._selector.select(self._timeout)
        if not ready:
            raise TimeoutError(f"no answer within {self._timeout:g} s")
        found = []
        for key, _ in ready:
            connection: Any = key.fileobj
            ended = connection.receive()
            now = time.perf_counter()
            for stream, status in ended:
                started = self._started.pop((key.fd, stream))
                if status == 0:
                    self.latencies.append(now - started)
                else:
                    self.failures[STATUS[status] if status < len(STATUS) else str(status)] += 1
            found.append((connection, len(ended)))
        return found

    def _send(self, connection: Connection, count: int) -> None:
        for _ in range(count):
            stream = connection.call(self.messages[self._next])
            self._started[connection.fileno(), stream] = time.perf_counter()
            self._next = (self._next + 1) % len(self.messages)
        connection.flush()


def main(plan_file: Path) -> None:
    """Run the plan in `plan_file`; each request stands in a file beside it."""
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    messages = [prefixed((plan_file.parent / name).read_bytes()) for name in plan["messages"]]
    loop = Loop(messages)
    loop.open(plan["address"], plan["concurrency"], plan["timeout"])
    loop.run(plan["warmup"])
    loop.forget()
    busy = time.process_time()
    seconds = loop.run(plan["seconds"])
    busy = time.process_time() - busy
    result = {"seconds": seconds, "client_cpu": busy / seconds, "latencies": loop.latencies, "failures": loop.failures}
    said = json.dumps(result)  # before what is still under way is counted too
    loop.drain()
    sys.stdout.write(said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
