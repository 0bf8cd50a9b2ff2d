"""Latencies in bounded memory and with a known relative error, whatever their number. The standard library alone.

The design is HdrHistogram's (https://hdrhistogram.github.io/HdrHistogram/): whole numbers below 2**11 have a bucket each,
and each doubling above is cut into 2**10 equal buckets. A bucket's middle is therefore never off by more than 1/2048 of
the value (0.05 %), from nanoseconds to hours, and histograms of several processes add up without loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_BITS = 11
_HALF = _BITS - 1
RELATIVE_ERROR = 2.0**-_BITS
"""Largest error of a percentile as a share of it."""


class Histogram:
    """How often each value was seen; `record` takes whole numbers from 0 on, such as nanoseconds."""

    __slots__ = ("_counts", "_sum", "largest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sum = 0
        self.largest = 0
        """Exact."""

    def __len__(self) -> int:
        return sum(self._counts.values())

    def record(self, value: int) -> None:
        """Count one value."""
        shift = value.bit_length() - _BITS
        bucket = value if shift <= 0 else (shift << _HALF) + (value >> shift)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._sum += value
        if value > self.largest:
            self.largest = value

    def mean(self) -> float:
        """Return the mean, exact; infinity of nothing."""
        count = len(self)
        return self._sum / count if count else float("inf")

    def percentile(self, share: float) -> float:
        """Return the smallest value that at least `share` of all values do not exceed; infinity of nothing."""
        return self.percentiles((share,))[0]

    def percentiles(self, shares: Iterable[float]) -> list[float]:
        """Return `percentile` of each of the ascending `shares`, in one walk."""
        count, found = len(self), list[float]()
        below, buckets = 0, iter(sorted(self._counts.items()))
        bucket, here = next(buckets, (0, 0))
        for share in shares:
            if not count:
                found.append(float("inf"))
                continue
            rank = max(1, -int(-count * share // 1))
            while below + here < rank:
                below += here
                bucket, here = next(buckets)
            found.append(min(_middle(bucket), self.largest))
        return found

    def add(self, other: Histogram) -> None:
        """Count everything that `other` has counted."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self._sum += other._sum
        self.largest = max(self.largest, other.largest)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `from_json`."""
        return {"counts": self._counts, "sum": self._sum, "largest": self.largest}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """Return the histogram that `to_json` wrote, also after a trip through JSON text."""
        made = cls()
        made._counts = {int(bucket): count for bucket, count in data["counts"].items()}
        made._sum, made.largest = data["sum"], data["largest"]
        return made


def _middle(bucket: int) -> float:
    """Return the value in the middle of a bucket."""
    shift = max(0, (bucket >> _HALF) - 1)
    low = (bucket - (shift << _HALF)) << shift
    return low + ((1 << shift) - 1) / 2
