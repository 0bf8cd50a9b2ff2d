"""`answer(runner, columns)`: what a runner says of every row, asked batch by batch.

    logits = answer(runner, {"image": open_split(data, "test")}, batch=128)["logits"]

This is the only loop of that kind: parity, accuracy, the int8 proof and the served endpoint all go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError

BATCH = 128
"""Rows per call where the caller asks for no other number."""


class Column(Protocol):
    """One named input of many rows: an array, or a split that is read slice by slice."""

    def __len__(self) -> int:
        """Rows."""

    def __getitem__(self, rows: slice, /) -> NDArray:
        """Those rows, as an array whose first axis counts them."""


Columns: TypeAlias = Mapping[str, Column]
Answering: TypeAlias = Callable[[Mapping[str, NDArray]], Mapping[str, NDArray]]
"""A `Runner`, or any other function from named batched arrays to named batched arrays."""


def answer(
    runner: Answering, columns: Columns, batch: int = BATCH, progress: Callable[[int], None] | None = None
) -> dict[str, NDArray]:
    """Return the outputs of `runner` for all rows of `columns`, in their order.

    In memory are one batch of inputs and, once, all outputs.

    Args:
        runner: what is asked.
        columns: input -> its rows; all of one length, at least one row.
        batch: rows per call; the last call may have fewer.
        progress: called after each batch with the rows answered so far.

    Raises:
        ModelError: the columns differ in length or are empty, or an output does not have one row per row that was
            asked, of one shape and type.
    """
    total = _rows(columns)
    answers: dict[str, NDArray] = {}
    for start in range(0, total, batch):
        stop = min(start + batch, total)
        found = runner({name: column[start:stop] for name, column in columns.items()})
        if not start:
            answers = {name: np.empty((total, *one.shape[1:]), one.dtype) for name, one in found.items()}
        for name, into in answers.items():
            one = found[name]
            if one.shape != (stop - start, *into.shape[1:]) or one.dtype != into.dtype:
                raise ModelError(
                    f"{getattr(runner, 'name', 'the model')} answers rows {start} to {stop - 1} with {name!r} "
                    f"{one.dtype}{one.shape}, not {into.dtype}{(stop - start, *into.shape[1:])}: each output must have "
                    f"one row per input row, always of one shape and type"
                )
            into[start:stop] = one
        if progress:
            progress(stop)
    return answers


def _rows(columns: Columns) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise ModelError(f"inputs to answer must have the same number of rows, at least one; they have {lengths}")
    return next(iter(lengths.values()))
