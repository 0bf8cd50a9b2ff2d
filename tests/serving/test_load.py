import pytest

from pipeline.serving.load import percentile


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_exact(share, expected):
    assert percentile(range(1, 101), share) == expected


def test_few_values():
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert percentile([], 0.5) == float("inf")
