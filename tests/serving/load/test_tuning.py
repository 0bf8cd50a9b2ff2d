"""The search against servers whose best settings are known."""

import contextlib
import random
from types import SimpleNamespace

import pytest

from pipeline.serving.load import tuning
from pipeline.serving.load.tuning import TUNED, along, instances_and_threads, interval, score, tune
from pipeline.settings.serving import Serving

START = Serving()


class Machine:
    """Serves settings under names; `speed` says how many answers a second each really gives."""

    def __init__(self, speed, noise=0.02, seed=0, drift=0.0, refuses=lambda serving: False):
        self.speed, self.noise, self.drift, self.refuses = speed, noise, drift, refuses
        self.chance = random.Random(seed)
        self.served: dict[str, Serving] = {}
        self.measured = 0

    @contextlib.contextmanager
    def serve(self, settings):
        assert not self.served, "one race at a time"
        self.served = {f"proxy{place}": one for place, one in enumerate(settings)}
        yield [
            f"!{one.instances} instances are too many" if self.refuses(one) else name
            for name, one in self.served.items()
        ]
        self.served = {}

    def measure(self, name):
        self.measured += 1
        slower = 1 / (1 + self.drift * self.measured)
        throughput = self.speed(self.served[name]) * slower * self.chance.lognormvariate(0, self.noise)
        return SimpleNamespace(throughput=throughput, p99_ms=16e3 / throughput)

    def tune(self, start=START, **options):
        return tune(start, self.serve, self.measure, **{"cores": 2, "concurrency": 16, **options})


def peaked(serving):
    """Best with one copy of two threads, batches of 16 and no delay."""
    speed = 5000.0
    speed *= 1.0 if (serving.instances, serving.threads) == (1, 2) else 0.8
    speed *= 1.0 if serving.max_batch_size == 16 else 0.9
    return speed * (1 - serving.queue_delay_us / 4000)


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_is_best_and_says_by_how_much(seed):
    start = START.model_copy(update={"queue_delay_us": 1000})
    found = Machine(peaked, seed=seed).tune(start)
    assert [getattr(found.chosen, name) for name in TUNED] == [1, 2, 16, 0]
    assert found.better
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(1 / (0.8 * 0.9 * 0.75), rel=0.05)
    assert found.sentence.startswith("1 x 2 threads, batches up to 16, delay 0 us does 1.")


def test_where_nothing_matters_the_settings_stay():
    changed = [Machine(lambda serving: 5000.0, noise=0.05, seed=seed).tune().better for seed in range(40)]
    assert sum(changed) <= 3  # the interval errs in 2 of 100 upwards, and 2 % are asked for beside it


def test_a_machine_that_grows_slower_meanwhile_does_not_deceive():
    best_first = Machine(peaked, noise=0.005, drift=0.02).tune(START.model_copy(update={"threads": 2, "instances": 1}))
    assert [getattr(best_first.chosen, name) for name in TUNED] == [1, 2, 16, 0]


def test_what_is_best_already_says_so():
    start = START.model_copy(update={"instances": 1, "threads": 2, "max_batch_size": 16})
    found = Machine(peaked, noise=0.002).tune(start)
    assert not found.better
    assert found.chosen == start
    assert "The settings as they are are best: 1 x 2 threads" in found.sentence


def test_what_cannot_be_served_is_noted_and_the_search_goes_on():
    found = Machine(peaked, refuses=lambda serving: serving.instances > 2).tune()
    refused = [trial for trial in found.trials if trial.refused]
    assert {(trial.serving.instances, trial.refused) for trial in refused} == {(4, "4 instances are too many")}
    assert all(trial.scores == [] for trial in refused)
    assert found.chosen.instances == 1


def test_it_costs_far_less_than_trying_everything():
    machine = Machine(peaked)
    machine.tune()
    everything = len(instances_and_threads(2)) * len(tuning.BATCHES) * len(tuning.DELAYS_US) * 5
    assert machine.measured < everything / 3


def test_a_model_without_a_batch_axis_is_not_offered_batches():
    found = Machine(peaked).tune(batches=False)
    assert {(trial.serving.max_batch_size, trial.serving.queue_delay_us) for trial in found.trials} == {(64, 0)}


def test_the_budgets_p99_takes_score_from_what_exceeds_it():
    slow, quick = SimpleNamespace(throughput=900.0, p99_ms=30.0), SimpleNamespace(throughput=800.0, p99_ms=10.0)
    assert score(slow, None) == 900.0
    assert score(slow, 20.0) == pytest.approx(600.0)
    assert score(quick, 20.0) == 800.0


@pytest.mark.parametrize("cores", [1, 2, 3, 16, 64])
def test_instances_and_threads_use_the_cores(cores):
    pairs = instances_and_threads(cores)
    assert (1, cores) in pairs and (cores, 1) in pairs
    assert all(instances * threads <= cores for instances, threads in pairs if instances != 2 * cores)
    assert len(pairs) <= 2 * cores.bit_length() + 2


def test_along_an_axis_nothing_else_changes():
    for axis, names in (
        ("instances", {"instances", "threads"}),
        ("batch", {"max_batch_size"}),
        ("delay", {"queue_delay_us"}),
    ):
        first, *others = along(START, axis, 2, 16)
        assert first == START
        for other in others:
            changed = {name for name in type(START).model_fields if getattr(other, name) != getattr(START, name)}
            assert changed and changed <= names
    assert [one.max_batch_size for one in along(START, "batch", 2, 16)] == [64, 4, 8, 16]


def test_the_interval_is_made_of_order_statistics():
    assert interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (2, 5, 8)
