"""Which of the candidates inside the budget is chosen: the smallest of those that are as fast as the fastest.

A speed measured twice differs, so "the highest throughput" names another winner every time where two are close. Here a
candidate counts as equally fast unless its turns, paired with those of the fastest, show that it is slower by more than
the share that matters to the user: the upper end of its relative throughput stays below 1 minus that share. What then
chooses (bytes, MACs, step) is the same in every evaluation of the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from pipeline.evaluation.intervals import ratio
from pipeline.graph import STAGES
from pipeline.records.evaluation import Measured
from pipeline.records.measures import Estimate, Offline, Served
from pipeline.records.verdict import EqualSpeed

Order: TypeAlias = tuple[int, int, int, str]


def preferred(
    candidates: Sequence[Measured], equal_speed: float, confidence: float
) -> tuple[Measured, EqualSpeed | None]:
    """Return the one to choose, and which others are equally fast; None where it alone is.

    Args:
        candidates: at least one, all inside the budget and measured through Triton. Their order has no say.
        equal_speed: share by which a candidate may be slower than the fastest and still count as equally fast.
        confidence: level of the intervals.
    """
    fastest = max(sorted(candidates, key=order), key=throughput)
    relative = {one.name: served_ratio(one, fastest, confidence) for one in candidates}
    equal = sorted((one for one in candidates if relative[one.name].high >= 1 - equal_speed), key=order)
    chosen = equal[0]
    if len(equal) == 1:
        return chosen, None
    what: Literal["smaller file", "fewer MACs", "earlier step"] = "earlier step"
    if chosen.size_bytes < equal[1].size_bytes:
        what = "smaller file"
    elif chosen.macs < equal[1].macs:
        what = "fewer MACs"
    others = ", ".join(f"{one.name} ({_times(relative[one.name])})" for one in equal if one.name != fastest.name)
    text = (
        f"{others} and {fastest.name} count as equally fast through Triton (times {fastest.name}'s throughput, "
        f"{100 * confidence:g} % interval); {chosen.name} has the {_SUPERLATIVES[what]}"
        + (f", {chosen.size_bytes:,} bytes" if what == "smaller file" else "")
    )
    return chosen, EqualSpeed(fastest=fastest.name, names=tuple(one.name for one in equal), broken_by=what, text=text)


def order(candidate: Measured) -> Order:
    """Return what sorts equally fast candidates, the preferred one first: bytes, MACs, step; the name for certainty."""
    steps = list(STAGES)
    step = steps.index(candidate.made_by) if candidate.made_by in steps else -1  # the first of its line
    return candidate.size_bytes, candidate.macs, step, candidate.name


def throughput(candidate: Measured) -> float:
    """Return what it answers through Triton at the largest concurrency, in images per second."""
    return candidate.served[max(candidate.served)].throughput


def served_ratio(one: Measured, other: Measured, confidence: float) -> Estimate:
    """Return how many times as fast `one` is as `other` through Triton, at the largest concurrency."""
    level = max(one.served)
    mine, theirs = one.served[level], other.served[level]
    return _ratio(mine, theirs, mine.throughput / theirs.throughput, confidence)


def offline_ratio(one: Measured, other: Measured, confidence: float) -> Estimate:
    """Return how many times as fast `one` is as `other` in this process, at the largest batch."""
    batch = max(one.offline)
    mine, theirs = one.offline[batch], other.offline[batch]
    return _ratio(mine, theirs, mine.images_per_second / theirs.images_per_second, confidence)


def _ratio(mine: Offline | Served, theirs: Offline | Served, value: float, confidence: float) -> Estimate:
    """Pair the turns; measurements without turns have no interval."""
    if mine.turns and len(mine.turns) == len(theirs.turns):
        return ratio(mine.turns, theirs.turns, confidence)
    return Estimate(value=value, low=value, high=value)


_SUPERLATIVES = {"smaller file": "smallest file", "fewer MACs": "fewest MACs", "earlier step": "earliest step"}


def _times(relative: Estimate) -> str:
    return f"{relative.value:.2f}x, {relative.low:.2f} to {relative.high:.2f}"
