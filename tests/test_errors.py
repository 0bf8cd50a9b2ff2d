"""The error tree and the near miss."""

import re

import pytest

from pipeline import errors
from pipeline.errors import near_miss


def test_the_tree_in_the_docstring_is_the_tree_in_the_code():
    drawn = re.findall(r"[├└]── (\w+Error|Skipped|Interrupted)", errors.__doc__)
    defined = [
        name for name, item in vars(errors).items() if isinstance(item, type) and item.__module__ == errors.__name__
    ]
    assert drawn == defined


def test_every_error_of_ours_is_final_and_a_skip_is_not_an_error():
    ours = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    final = {item.__name__ for item in ours if issubclass(item, errors.FlyweightError)}
    assert {item.__name__ for item in ours} - final == {"Skipped"}
    assert all(item.__doc__ for item in ours)


@pytest.mark.parametrize(
    ("word", "found"),
    [("epoch", "epochs"), ("eopchs", "epochs"), ("batchsize", "batch_size"), ("lrr", "lr"), ("p99", "p99_ms")],
)
def test_a_near_miss_is_suggested(word, found):
    assert near_miss(word, ["epochs", "batch_size", "lr", "p99_ms"]) == f"; did you mean {found!r}?"


@pytest.mark.parametrize("word", ["", "q", "zzzz", "e"])
def test_anything_else_is_not(word):
    assert near_miss(word, ["epochs", "batch_size"]) == ""


def test_nothing_is_suggested_where_nothing_is_allowed():
    assert near_miss("epochs", []) == ""
    assert near_miss("epochs", iter(["epoch"])) == "; did you mean 'epoch'?"
