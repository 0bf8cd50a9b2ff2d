"""Against NumPy's percentiles of the very values."""

import json

import numpy as np
import pytest

from pipeline.serving.load.histogram import RELATIVE_ERROR, Histogram

SHARES = (0.0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0)
CHANCE = np.random.default_rng(17)
VALUES = {
    "small": CHANCE.integers(0, 3000, 5000),
    "latencies": CHANCE.lognormal(13, 1.5, 20_000).astype(np.int64),  # around 0.4 ms in nanoseconds, with a long tail
    "hours": CHANCE.integers(0, 2**45, 1000),
    "one": np.array([123_456_789]),
    "edges": np.array([2**power + off for power in range(40) for off in (-1, 0, 1)]),
}


def histogram(values):
    made = Histogram()
    for value in values:
        made.record(int(value))
    return made


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_percentiles_are_numpys_within_the_stated_error(values):
    made = histogram(values)
    expected = np.quantile(values, SHARES, method="inverted_cdf")
    np.testing.assert_allclose(made.percentiles(SHARES), expected, rtol=RELATIVE_ERROR, atol=0)
    assert len(made) == len(values)
    assert made.mean() == pytest.approx(np.mean(values), rel=1e-12)
    assert made.largest == max(values)


def test_memory_is_bounded_however_many_values_come():
    made = histogram(CHANCE.integers(0, 2**40, 100_000))
    assert len(made._counts) < 31 * 1024  # 2**40 nanoseconds are 18 minutes


def test_two_halves_add_up_to_the_whole_also_through_json():
    values = VALUES["latencies"]
    whole, one = histogram(values), histogram(values[:7000])
    two = Histogram.from_json(json.loads(json.dumps(histogram(values[7000:]).to_json())))
    one.add(two)
    assert one.to_json() == whole.to_json()


def test_nothing_has_no_percentiles():
    assert Histogram().percentiles([0.5, 0.99]) == [float("inf")] * 2
    assert Histogram().mean() == float("inf")
