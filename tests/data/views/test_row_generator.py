import numpy as np
import pytest
import torch

from pipeline.data.views import row_generator
from pipeline.data.views.row_generator import RowGenerator

ROWS = np.arange(20000)


def test_the_numbers_are_those_of_the_paper():
    """SplitMix64 begun at 1234567, as the reference implementation of java.util.SplittableRandom gives them."""
    numbers = row_generator._numbers(np.array([1234567], dtype=np.uint64), np.arange(3, dtype=np.uint64))
    assert numbers.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_number_is_a_function_of_seed_epoch_row_and_place():
    numbers = RowGenerator(1, 2, ROWS).uniform(3)
    shuffled = np.random.default_rng(0).permutation(ROWS)
    assert torch.equal(RowGenerator(1, 2, shuffled).uniform(3), numbers[shuffled])
    for other in (
        RowGenerator(2, 2, ROWS).uniform(3),
        RowGenerator(1, 3, ROWS).uniform(3),
        RowGenerator(1, 2, ROWS).uniform(4),
    ):
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.03


@pytest.mark.parametrize("place", [0, 1, 7])
def test_uniform_numbers_are_uniform(stats, place):
    numbers = RowGenerator(5, 0, ROWS).uniform(place)
    assert numbers.dtype == torch.float64 and float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03, "neighbouring rows have nothing in common"


def test_normal_numbers_are_normal_and_each_rows_own(stats):
    generator, chosen = RowGenerator(5, 0, ROWS[:400]), torch.tensor([3, 7, 11, 399])
    numbers = generator.normal(8, 7001, chosen)
    assert numbers.shape == (4, 7001) and numbers.dtype == torch.float32
    for row in numbers:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-3
        assert abs(np.corrcoef(row[:3500], row[3501:])[0, 1]) < 0.06
    assert float(np.abs(np.corrcoef(numbers.numpy()) - np.eye(4)).max()) < 0.05
    assert torch.equal(generator.normal(8, 7001, chosen[1:2])[0], numbers[1])
