"""Where a server is used best: the knee of latency against throughput."""

from __future__ import annotations

from collections.abc import Sequence


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Return the place of the knee among `points` (throughput, mean latency), or None of fewer than three.

    It is the point of the highest *power*, throughput over latency: up to there more load gains more than it costs in
    waiting (Kleinrock, "Power and Deterministic Rules of Thumb for Probabilistic Problems in Computer Communications",
    ICC 1979; on a single queue with random arrivals it is at half the capacity). It needs neither units nor a range.
    """
    if len(points) < 3:
        return None
    power = [throughput / latency if latency > 0 else 0.0 for throughput, latency in points]
    return power.index(max(power))
