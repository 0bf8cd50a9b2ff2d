"""Arrivals against the mathematics, and the point of it all: a stall is charged to every request that was due in it."""

import itertools
import math
import time

import numpy as np
import pytest
from fake_model_server import FakeModelServer

from pipeline.serving.load import open_loop
from pipeline.serving.load.histogram import Histogram
from pipeline.serving.load.processes import drive

MS = 1_000_000


def gaps(arrivals, count=20_000):
    return np.diff([0, *itertools.islice(arrivals, count)]) / 1e9


def test_poisson_gaps_are_exponential_with_the_mean_of_the_rate():
    found = np.sort(gaps(open_loop.poisson(500.0, 0, seed=17)))
    assert found.mean() == pytest.approx(1 / 500, rel=0.02)  # 0.7 % is one standard deviation
    assert found.std() == pytest.approx(1 / 500, rel=0.04)
    expected = 1 - np.exp(-500 * found)
    steps = np.arange(1, len(found) + 1) / len(found)
    assert np.abs(steps - expected).max() < 1.36 / math.sqrt(len(found))  # Kolmogorov and Smirnov, 5 %


def test_equal_seeds_give_equal_times_and_others_do_not():
    one, same, other = (gaps(open_loop.poisson(100.0, 0, seed), 50) for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).any()


def test_constant_arrivals_of_all_processes_are_evenly_spaced():
    whole = list(itertools.islice(open_loop.constant(300.0, 1000), 12))
    parts = [list(itertools.islice(open_loop.constant(300.0, 1000, place, 3), 4)) for place in range(3)]
    assert sorted(itertools.chain(*parts)) == whole
    assert set(np.diff(whole)) <= {3_333_333, 3_333_334}


@pytest.fixture
def server():
    server = FakeModelServer()
    yield server
    server.stop()


def plan(server, **share):
    return {"address": server.address, "window": 500 * MS, "windows": 3, "warmup": 200 * MS, "silence": 20, **share}


def latencies(seen):
    whole = Histogram()
    for parts in seen.windows.values():
        for part in parts:
            whole.add(Histogram.from_json(part["latencies"]))
    return whole


def opened(server, rate, place=0, of=1, arrivals="constant"):
    return plan(server, loop="open", rate=rate, arrivals=arrivals, seed=17, place=place, of=of, connections=4)


def stalling(server, seconds):
    """A snapshot that lets the server stall once, when the first window has ended."""
    calls = itertools.count()

    def snapshot():
        if next(calls) == 1:
            server.stalls_until = time.perf_counter() + seconds

    return snapshot


@pytest.mark.integration
def test_a_stall_is_charged_to_all_that_was_due_in_it_and_a_closed_loop_hides_it(server):
    seen = drive([opened(server, 200.0)], [b"one"], stalling(server, 0.4))
    charged = latencies(seen)
    assert len(charged) == pytest.approx(300, abs=1)  # 200/s for 1.5 s
    # 80 of the 300 were due in the 0.4 s; those of its first 0.3 s waited at least 0.1 s
    assert charged.percentile(1 - 50 / 300) > 100 * MS
    assert charged.largest > 350 * MS

    seen = drive([plan(server, loop="closed", concurrency=1, connections=1)], [b"one"], stalling(server, 0.4))
    hidden = latencies(seen)
    assert hidden.largest > 350 * MS
    slow = 1 - 5 / len(hidden)
    assert hidden.percentile(slow) < 100 * MS, "all but a few never noticed"


@pytest.mark.integration
def test_processes_add_up_to_the_rate_and_say_how_late_they_were(server):
    plans = [opened(server, 100.0, place, 2, "poisson") for place in range(2)]
    seen = drive(plans, [b"one"])
    due = [list(itertools.takewhile(lambda at: at < 1700 * MS, open_loop.poisson(50.0, 0, seed))) for seed in (17, 18)]
    measured = sum(at >= 200 * MS for at in itertools.chain(*due))
    assert len(latencies(seen)) == pytest.approx(measured, abs=2)
    assert server.answered == len(server.asked) == pytest.approx(sum(map(len, due)), abs=2)
    assert len(seen.late) == pytest.approx(measured, abs=2)
