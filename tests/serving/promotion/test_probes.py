import math

import pytest
from serving_toys import FakeTriton, golden

from pipeline.serving.promotion import probes
from pipeline.serving.promotion.probes import Limits, Probes
from pipeline.serving.triton.errors import TritonError
from pipeline.settings.serving import Promote

NONE = Limits(p99_ms=math.inf, error_rate=0.01, drift=1.0)


def tail(count, of, share):
    return sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(count, of + 1))


@pytest.mark.parametrize("of", [1, 7, 100, 500])
@pytest.mark.parametrize("share", [0.01, 0.2])
def test_too_many_is_the_tail_of_the_binomial_distribution(of, share):
    for count in range(1, of + 1, max(1, of // 20)):
        assert probes.too_many(count, of, share, 0.001) == (tail(count, of, share) < 0.001)


def test_too_many_of_very_many():
    assert not probes.too_many(10_050, 1_000_000, 0.01, 0.001)
    assert probes.too_many(10_500, 1_000_000, 0.01, 0.001)


def test_a_share_of_nothing_allows_nothing_and_of_all_allows_all():
    assert probes.too_many(1, 10**6, 0.0, 0.001)
    assert not probes.too_many(0, 10, 0.0, 0.001)
    assert not probes.too_many(10, 10, 1.0, 0.001)


def test_a_hiccup_is_no_verdict_and_slowness_is():
    limit = Limits(p99_ms=10.0, error_rate=0.01, drift=1.0)
    assert probes.breach(Probes([1.0] * 95 + [500.0] * 5), None, limit) is None
    said = probes.breach(Probes([1.0] * 90 + [500.0] * 10), Probes([2.0]), limit)
    assert "10 of 100 probes took longer than the 10 ms allowed for the p99, which is 500 ms and was 2 ms" in said


def test_limits_are_relative_to_the_version_before_and_never_below_a_machines_noise():
    config = Promote(max_p99_ratio=3.0)
    assert probes.limits(config, None).p99_ms == math.inf
    assert probes.limits(config, Probes([1.0] * 10)).p99_ms == 20.0
    assert probes.limits(config, Probes([30.0] * 10)).p99_ms == 90.0
    assert probes.limits(Promote(max_p99_ms=5.0), Probes([30.0] * 10)).p99_ms == 5.0
    assert probes.limits(config, Probes()).p99_ms == math.inf  # the version before answered nothing


def test_drift_needs_both_size_and_significance():
    limit = Limits(p99_ms=math.inf, error_rate=0.01, drift=0.2)
    before = Probes(classes=dict.fromkeys(range(32), 0))
    few = Probes(classes={row: 1 if row < 3 else 0 for row in range(32)})
    many = Probes(classes={row: 1 if row < 20 else 0 for row in range(32)})
    assert probes.breach(few, before, limit) is None
    assert "62% of 32 golden inputs' predictions moved" in probes.breach(many, before, limit)
    assert probes.breach(many, None, limit) is None
    tiny = Probes(classes={0: 1, 1: 1})
    assert probes.breach(tiny, Probes(classes={0: 0, 1: 0}), limit) is None  # two rows prove nothing


def test_probes_go_round_the_golden_inputs_row_by_row(fake, served):
    asked = []
    infer = FakeTriton.infer
    fake.infer = lambda model, inputs, version="": (
        asked.append(inputs["image"].shape) or infer(fake, model, inputs, version)
    )
    demanded = golden(served, 3)
    seen = probes.probe(fake, "proxy", demanded, 7)
    assert asked == [(1, 1, 2, 2)] * 7
    assert len(seen.latencies_ms) == 7
    assert seen.classes == {row: int(demanded.outputs["logits"][row].argmax()) for row in range(3)}


def test_failures_are_counted_by_status_and_a_server_that_is_away_is_none(fake, served):
    fake.failing.add(served.sha256)
    seen = probes.probe(fake, "proxy", golden(served), 5)
    assert (seen.failures, seen.latencies_ms, seen.p99_ms) == ({"INTERNAL": 5}, [], math.inf)
    fake.die()
    with pytest.raises(TritonError):
        probes.probe(fake, "proxy", golden(served), 5)
