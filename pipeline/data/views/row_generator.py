"""Random numbers for rows of a split: a pure function of seed, epoch and row.

So a row is seen alike whichever process draws for it, beside whichever other rows. The generator is SplitMix64, read as a
function from a counter to 64 bits: the n-th number of the stream that begins at a key is ``mix(key + n * GAMMA)``.
Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (https://doi.org/10.1145/2660193.2660195), section 5.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15


class RowGenerator:
    """The random numbers of some rows of a split in one epoch.

    Each row has a stream of its own; the numbers in it go by their places, 0, 1, 2, ..., and may be asked for in any order.
    """

    def __init__(self, seed: int, epoch: int, rows: NDArray[np.int64]) -> None:
        """`rows` are (N,) indices into the whole split, whichever process has them."""
        key = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
        self._keys = _numbers(np.full(len(rows), key, dtype=np.uint64), rows.astype(np.uint64))

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, place: int) -> Tensor:
        """Return (N,) float64 in [0, 1): the number at `place` of each row."""
        bits = _numbers(self._keys, np.array(place, dtype=np.uint64))
        return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)

    def normal(self, place: int, count: int, chosen: Tensor) -> Tensor:
        """Return (M, count) float32, standard normal: those at `place` and behind it of the M rows that `chosen` names.

        `chosen` holds indices into the N rows. Two numbers come from each 64 bits (Box and Muller,
        https://doi.org/10.1214/aoms/1177706645).
        """
        places = np.arange(place, place + -(-count // 2), dtype=np.uint64)
        bits = _numbers(self._keys[chosen.numpy()][:, None], places)
        radius = (bits >> np.uint64(40)).astype(np.float32)
        angle = (bits & np.uint64(0xFFFFFF)).astype(np.float32)
        radius = np.sqrt(-2.0 * np.log((radius + 1.0) * np.float32(2.0**-24)))
        angle *= np.float32(2.0 * math.pi * 2.0**-24)
        return torch.from_numpy(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count])


def _numbers(keys: NDArray[np.uint64], places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each pair of a key and a place, broadcast against each other."""
    gamma = np.array(_GAMMA, dtype=np.uint64)  # arrays wrap around in silence, numbers do not
    bits = np.atleast_1d(keys + (places + np.uint64(1)) * gamma)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
