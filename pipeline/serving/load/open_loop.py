"""An open loop: requests leave when they are due, whatever has become of those before.

Latency counts from when a request was due and not from when it could be sent, so that a server (or this process) that
stalls is charged for every request that was due in the meantime. A generator that waits for answers, or that counts from
sending, leaves those out ("coordinated omission": https://github.com/giltene/wrk2).
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.serving.load.generator import Traffic

CONNECTIONS = 4
"""Connections over which each process spreads its requests in turn."""


def poisson(rate: float, begin: int, seed: int) -> Iterator[int]:
    """Yield when requests are due, in ns: a Poisson process, as many clients that know nothing of each other make it.

    Args:
        rate: requests per second.
        begin: ns on any clock.
        seed: equal seeds give equal times.
    """
    chance, due = random.Random(seed), float(begin)  # noqa: S311 -- no secret
    while True:
        due += chance.expovariate(rate) * 1e9
        yield int(due)


def constant(rate: float, begin: int, place: int = 0, of: int = 1) -> Iterator[int]:
    """Yield when requests are due, in ns: evenly spaced. Of `of` processes this one, `place`, takes every `of`-th."""
    for count in itertools.count(place, of):
        yield begin + int(count * 1e9 / rate)


def run(traffic: Traffic, begin: int, plan: Mapping[str, Any]) -> None:
    """Send this process's share of ``plan["rate"]`` requests per second from `begin` (ns) on until the traffic ends."""
    place, of = plan["place"], plan["of"]
    if plan["arrivals"] == "poisson":  # several independent ones add up to one
        arrivals = poisson(plan["rate"] / of, begin, plan["seed"] + place)
    else:
        arrivals = constant(plan["rate"], begin, place, of)
    turns, record, measured = itertools.cycle(traffic.lines), traffic.late.record, begin + plan["warmup"]
    due, wanted = next(arrivals), True
    while wanted:
        wanted = traffic.goes_on(now := time.perf_counter_ns())
        touched, last = set(), min(now, traffic.end - 1)
        while due <= last:  # also after the end: what was due must not be left out
            line = next(turns)
            traffic.send(line, due)
            touched.add(line.connection)
            if due >= measured:
                record(now - due)
            due = next(arrivals)
        for connection in touched:
            connection.flush()
        if wanted:
            traffic.receive(due)
