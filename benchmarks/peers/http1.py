"""The load generator for peers that speak HTTP/1.1: a closed loop with as little work a request as the one over gRPC.

Takes the place of `pipeline.serving.load.generator` in `processes.drive`, with the same plan and the same lines, so that windows,
latencies and processor time are counted alike. One connection a request in flight, kept alive, no pipelining: that is
how HTTP/1.1 clients work. Requests are whole and ready to send; of an answer the status and the length are read.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.serving.load.generator import read_requests
from pipeline.serving.load.histogram import Histogram

_GOOD = b"HTTP/1.1 200"


def request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a POST of `body`, ready to send."""
    lines = {"Host": "benchmark", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def length(data: bytes) -> int:
    """Return how long the answer that begins `data` is, head and body; 0 while the head is not there yet.

    Raises `ConnectionError` for an answer without Content-Length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    _, found, after = data[:end].lower().partition(b"\r\ncontent-length:")
    if not found:
        raise ConnectionError(f"an answer without Content-Length: {data[:end]!r}")
    return end + 4 + int(after.partition(b"\r\n")[0])


class Loop:
    """So many requests in flight, over one connection each.

    Args:
        address: ``host:port``.
        concurrency: connections.
        requests: sent in turn.
        silence: seconds without any answer before `TimeoutError`.
    """

    def __init__(self, address: str, concurrency: int, requests: Sequence[bytes], silence: float) -> None:
        host, _, port = address.rpartition(":")
        self._silence, self._requests, self._next = silence, requests, 0
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        for _ in range(concurrency):
            made = socket.create_connection((host, int(port)), silence)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[made.fileno()] = made
            self._poll.register(made, select.EPOLLIN)
        self.latencies: defaultdict[int, Histogram] = defaultdict(Histogram)
        self.refused: defaultdict[int, Histogram] = defaultdict(Histogram)
        self.failures: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.answered: Counter[int] = Counter()
        self.waited: Counter[int] = Counter()
        self.busy: dict[int, float] = {}

    def run(self, begin: int, start: int, window: int, windows: int) -> None:
        """Send from `begin` on and count `windows` windows of `window` ns from `start` on; waits for the last answers."""
        time.sleep(max(0.0, (begin - time.perf_counter_ns()) * 1e-9))
        due: dict[int, int] = {}
        parts: dict[int, bytes] = {}
        for number in self._sockets:
            due[number] = time.perf_counter_ns()
            self._send(number)
        boundary, at, end = start, -1, start + windows * window
        busy = time.process_time()
        while due:
            now = time.perf_counter_ns()
            while now >= boundary and at < windows:
                before, busy = busy, time.process_time()
                self.busy[at] = busy - before
                _print({"window": at, "answered": self.answered[at], "waited": self.waited[at]})
                at, boundary = at + 1, boundary + window
            wait = self._silence if now >= end else max(0.0, min(self._silence, (boundary - now) * 1e-9))
            ready = self._poll.poll(wait)
            if not ready and wait == self._silence:
                raise TimeoutError(f"no answer within {self._silence:g} s")
            for number, _ in ready:
                data = parts.pop(number, b"") + self._sockets[number].recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                whole = length(data)
                if not whole or len(data) < whole:
                    parts[number] = data
                    continue
                now = time.perf_counter_ns()
                sent = due.pop(number)
                due_in, arrived = (sent - start) // window, (now - start) // window
                if data.startswith(_GOOD):
                    self.latencies[due_in].record(now - sent)
                    self.answered[arrived] += 1
                    self.waited[arrived] += now - sent
                else:
                    self.failures[due_in][f"HTTP {data[9:12].decode()}"] += 1
                    self.refused[due_in].record(now - sent)
                if now < end:  # due is what was looked at: by the time that it is sent the end may have come
                    due[number] = now
                    self._send(number)
        for late in range(at, windows):  # nothing was under way when these ended
            _print({"window": late, "answered": self.answered[late], "waited": self.waited[late]})

    def _send(self, number: int) -> None:
        self._sockets[number].sendall(self._requests[self._next])
        self._next = (self._next + 1) % len(self._requests)

    def to_json(self, windows: int) -> dict[str, Any]:
        """Return what was seen, as the generator over gRPC does."""
        seen = {
            number: {
                "latencies": self.latencies[number].to_json(),
                "failures": self.failures[number],
                "refused": self.refused[number].to_json(),
                "answered": self.answered[number],
                "busy": self.busy.get(number, 0.0),
            }
            for number in range(windows)
        }
        return {"windows": seen, "late": Histogram().to_json()}


def main(plan_file: Path) -> None:
    """Run the plan in `plan_file`."""
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    loop = Loop(plan["address"], plan["concurrency"], read_requests(plan_file, plan["sizes"]), plan["silence"])
    _print({"connected": plan["concurrency"]})
    begin = int(sys.stdin.readline())
    loop.run(begin, begin + plan["warmup"], plan["window"], plan["windows"])
    _print(loop.to_json(plan["windows"]))


def _print(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
