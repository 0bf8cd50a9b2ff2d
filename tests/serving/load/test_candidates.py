"""Candidates in turns: how turns become a measurement. The real server's part is tested with the stage `evaluate`."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.evaluation.intervals import TURNS
from pipeline.serving.load import candidates
from pipeline.serving.load.result import Closed


def turn(throughput=1000.0, p99=5.0, failures=0, processes=1):
    return SimpleNamespace(
        throughput=throughput, p50_ms=p99 / 2, p99_ms=p99, requests=100, failures=failures, client_cpu=0.1,
        processes=processes, errors={"UNAVAILABLE": failures} if failures else {},
    )  # fmt: skip


def test_turns_make_one_measurement_with_intervals():
    speeds = [1000.0, 1100, 900, 1050, 950, 1010, 990, 300]
    served = candidates.summary([turn(speed, p99=5000 / speed, failures=1) for speed in speeds], 0.95)
    assert served.turns == tuple(speeds)
    assert served.interval.low < served.throughput < served.interval.high
    assert served.throughput == pytest.approx(995, rel=0.02)  # the disturbed turn has little say
    assert served.p99_interval.low < served.p99_ms < served.p99_interval.high
    assert (served.requests, served.failures) == (800, 8)


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the load generator, which answers from `asked.results`."""
    calls = SimpleNamespace(made=[], results=[])

    def run(*arguments):
        calls.made.append(arguments)
        return calls.results.pop(0)

    monkeypatch.setattr(candidates, "run", run)
    return calls


def test_a_turn_takes_its_share_of_the_seconds_and_as_many_processes_as_the_one_before(asked):
    asked.results = [turn(), turn()]
    inputs = {"image": np.zeros((1, 1))}
    candidates._turn("int8", "proxy__eval_int8", inputs, 16, 2.0, [])
    candidates._turn("int8", "proxy__eval_int8", inputs, 16, 2.0, [turn(processes=2)])
    expected = ("proxy__eval_int8", "", inputs, Closed(16), 2.0 / TURNS, None)
    assert [call[:6] for call in asked.made] == [expected] * 2
    assert [call[-1] for call in asked.made] == [None, 2]


def test_a_turn_without_an_answer_is_taken_again_and_three_are_an_error(asked):
    stalled = turn(throughput=0.0, p99=float("inf"), failures=7)
    asked.results = [stalled, turn()]
    assert candidates._turn("int8", "m", {}, 16, 2.0, []).throughput == 1000
    asked.results = [stalled] * 3
    message = r"none of 100 requests to int8 with 16 in flight within 3 turns of evaluate.load_seconds / 8 = 0.25 s \(7 x UNAV"
    with pytest.raises(RuntimeError, match=message):
        candidates._turn("int8", "m", {}, 16, 2.0, [])
