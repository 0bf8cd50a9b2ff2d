"""The one loop over rows: every row once and in order, whatever the batch, and refusals in words."""

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.runners.answer import answer


class Doubles:
    """Answers two inputs of different ranks with two outputs, and remembers the sizes of the batches."""

    name = "doubles"

    def __init__(self):
        self.batches = []

    def __call__(self, inputs):
        self.batches.append(len(inputs["left"]))
        return {"twice": inputs["left"] * 2, "sum": inputs["left"].sum(axis=1) + inputs["right"]}


@pytest.fixture
def columns():
    return {"left": np.arange(33, dtype=np.float32).reshape(11, 3), "right": np.arange(11, dtype=np.float32)}


@pytest.mark.parametrize("batch", [1, 4, 11, 100])
def test_every_row_is_answered_once_in_its_order(columns, batch):
    runner = Doubles()
    found = answer(runner, columns, batch)
    np.testing.assert_array_equal(found["twice"], columns["left"] * 2)
    np.testing.assert_array_equal(found["sum"], columns["left"].sum(axis=1) + columns["right"])
    assert {name: one.dtype for name, one in found.items()} == {"twice": np.float32, "sum": np.float32}
    assert sum(runner.batches) == 11 and max(runner.batches) == min(batch, 11)


def test_a_split_is_read_slice_by_slice(tiny_data):
    from pipeline.data.split import open_split

    split = open_split(tiny_data, "validation")
    split.images = None  # never as a whole
    found = answer(lambda inputs: {"brightest": inputs["image"].max(axis=(1, 2, 3))}, {"image": split}, 7)
    np.testing.assert_array_equal(found["brightest"], split.slice(0, len(split)).max(axis=(1, 2, 3)))


def test_progress_counts_rows(columns):
    seen = []
    answer(Doubles(), columns, 4, seen.append)
    assert seen == [4, 8, 11]


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (lambda inputs: {"y": inputs["left"][:1]}, r"rows 0 to 3 with 'y' float32\(1, 3\), not float32\(4, 3\)"),
        (
            lambda inputs: {"y": inputs["left"][:, : int(3 - inputs["right"][0] // 8)]},
            r"the model answers rows 8 to 10 with 'y' float32\(3, 2\), not float32\(3, 3\)",
        ),
    ],
)
def test_an_output_that_has_not_one_row_per_input_row_is_refused(columns, broken, text):
    with pytest.raises(ModelError, match=text):
        answer(broken, columns, 4)


def test_columns_of_different_lengths_and_empty_ones_are_refused(columns):
    with pytest.raises(ModelError, match=r"same number of rows.*\{'left': 11, 'right': 5\}"):
        answer(Doubles(), columns | {"right": columns["right"][:5]})
    with pytest.raises(ModelError, match=r"at least one; they have \{'left': 0, 'right': 0\}"):
        answer(Doubles(), {name: one[:0] for name, one in columns.items()})
