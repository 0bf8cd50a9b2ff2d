"""Timing against runners whose time is known: their clock moves only when they are called."""

import numpy as np
import pytest

from pipeline.runners import timing

IMAGES = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Stand:
    """A runner that takes the given seconds for each call, in turn, and remembers what it was given."""

    def __init__(self, clock, seconds, log):
        self.clock, self.seconds, self.log, self.name = clock, seconds, log, "stand-in"

    def __call__(self, inputs):
        self.clock.now += self.seconds[len(self.log) % len(self.seconds)]
        self.log.append((self, inputs["image"]))
        return {}

    def close(self):
        pass


def test_median_p99_and_throughput_of_known_times():
    clock, log = Clock(), []
    times = [0.010] * 9 + [0.100]
    result = timing.time_runners({"a": Stand(clock, times, log)}, IMAGES, 2, seconds=20.0, clock=clock)["a"]
    assert (result.p50_ms, result.p99_ms) == (pytest.approx(10), pytest.approx(100))
    assert result.images_per_second == pytest.approx(200)  # the slow tenth does not count
    assert result.calls == len(log) - 2  # warm-up left out


def test_every_runner_is_timed_as_long_as_asked_and_at_least_once_per_turn():
    clock, log = Clock(), []
    runners = {"quick": Stand(clock, [0.001], log), "slow": Stand(clock, [7.0], log)}
    result = timing.time_runners(runners, IMAGES, 1, seconds=1.0, clock=clock)
    assert result["quick"].calls == pytest.approx(1000, abs=10)
    assert result["slow"].calls == timing.TURNS


def test_runners_take_turns_there_and_back():
    clock, log = Clock(), []
    runners = {name: Stand(clock, [1.0], log) for name in "ab"}
    timing.time_runners(runners, IMAGES, 1, seconds=1.0, clock=clock)
    order = [runner for runner, _ in log][4:]  # after the warm-up
    assert order == [runners[name] for name in "abba"] * (timing.TURNS // 2)


def test_a_batch_larger_than_the_images_starts_over_with_the_first():
    clock, log = Clock(), []
    timing.time_runners({"a": Stand(clock, [1.0], log)}, IMAGES, 5, seconds=1.0, clock=clock)
    assert (log[0][1] == IMAGES[[0, 1, 2, 0, 1]]).all()


def test_each_turn_is_kept_with_an_interval_around_the_typical_one():
    clock, log = Clock(), []
    result = timing.time_runners({"a": Stand(clock, [0.010, 0.0125], log)}, IMAGES, 2, seconds=4.0, clock=clock)["a"]
    assert len(result.turns) == timing.TURNS
    assert result.interval.low <= result.images_per_second <= result.interval.high
    assert [result.interval.low, result.interval.high] == pytest.approx([160, 200])  # turns begin with either call


def test_a_machine_that_slows_down_steadily_favours_none():
    clock, log = Clock(), []
    runners = {name: Slowing(clock, log) for name in "ab"}
    found = timing.time_runners(runners, IMAGES, 1, seconds=0.01, clock=clock)
    assert found["a"].images_per_second == pytest.approx(found["b"].images_per_second, rel=0.02)


class Slowing(Stand):
    """Each call takes 2 % longer than the one before, whosever it was."""

    def __init__(self, clock, log):
        super().__init__(clock, [0.0], log)

    def __call__(self, inputs):
        self.clock.now += 1.02 ** len(self.log)
        return super().__call__(inputs)
