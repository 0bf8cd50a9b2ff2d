"""A closed loop: so many requests in flight, each answer followed by the next request at once.

It says what so many patient clients get. It does not say what happens when more come than can be served, and a server
that stalls is asked nothing meanwhile: for that there is `open_loop`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.serving.load.generator import Traffic

IN_FLIGHT_EACH = 16
"""Requests that share one connection, as a balancer or a busy client would have it."""


def connections(concurrency: int) -> int:
    """Return how many connections carry so many requests."""
    return -(-concurrency // IN_FLIGHT_EACH)


def run(traffic: Traffic, begin: int, plan: Mapping[str, Any]) -> None:
    """Keep ``plan["concurrency"]`` requests in flight from `begin` (ns) on until the traffic ends."""
    concurrency, lines = plan["concurrency"], traffic.lines
    time.sleep(max(0.0, (begin - time.perf_counter_ns()) * 1e-9))
    now = time.perf_counter_ns()
    found = [(line, concurrency // len(lines) + (at < concurrency % len(lines))) for at, line in enumerate(lines)]
    while traffic.goes_on(now):
        for line, answers in found:
            for _ in range(answers):
                traffic.send(line, now)
            line.connection.flush()
        found = traffic.receive(sys.maxsize)
        now = time.perf_counter_ns()
