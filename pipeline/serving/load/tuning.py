"""Which serving settings are best here, for this model and the budget's load: searched by measuring, never by belief.

Coordinate search over instances with their threads, largest batch and queue delay: along one of them at a time all values
are loaded side by side and race: the worse half is dropped and the rest measured more often, until one is left
(successive halving, Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943). Within a race all take turns, forth
and back, so that whatever else the machine does hits all alike.

The best of a search looks better than it is. So it is measured again beside the settings as they were, in turns, and
wins only where the whole confidence interval of the ratio is above 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from pipeline.progress.events import report
from pipeline.settings.serving import Serving

TUNED = ("instances", "threads", "max_batch_size", "queue_delay_us")
"""The settings of the section `serving` that are searched."""
BATCHES = (4, 8, 16, 32, 64, 128)
DELAYS_US = (0, 200, 500, 1000, 2000)
PASSES = 2
"""How often all coordinates are gone through; the second pass is left out where the first changed nothing."""
HEAT = 8
"""Measurements of a heat: the fewer are left in a race, the more turns each of them gets."""
DUELS = 9
"""Pairs of measurements of the winner and the settings as they were."""
LEAST_GAIN = 1.02
"""Ratio below which a change is not worth it."""


class Figures(Protocol):
    """What a measurement says; `LoadResult` is one."""

    @property
    def throughput(self) -> float:
        """Good answers per second."""

    @property
    def p99_ms(self) -> float:
        """Latency that 99 % of the answers do not exceed."""


Serve: TypeAlias = Callable[[Sequence[Serving]], AbstractContextManager[Sequence[str]]]
"""Serves the model under each of the settings while its block runs; gives a name for each, or why it was refused after a
leading ``!``."""
Measure: TypeAlias = Callable[[str], Figures]
"""Puts the budget's load on a served name."""


@dataclass
class Trial:
    """One set of settings and how it did, turn by turn."""

    serving: Serving
    scores: list[float] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    refused: str | None = None
    """Why it could not be served."""

    @property
    def score(self) -> float:
        """Median over its turns; 0 before the first."""
        return statistics.median(self.scores) if self.scores else 0.0

    @property
    def throughput(self) -> float:
        """Median of good answers a second; 0 before the first turn."""
        return statistics.median(one.throughput for one in self.figures) if self.figures else 0.0

    @property
    def p99_ms(self) -> float:
        """Median p99; infinite before the first turn."""
        return statistics.median(one.p99_ms for one in self.figures) if self.figures else float("inf")


@dataclass(frozen=True)
class Tuning:
    """How a search ended."""

    load: str
    """The budget's load in words."""
    start: Serving
    """The settings as they were."""
    best: Serving
    """The best of the search."""
    ratio: float
    """Its score over that of `start`, median of the duels; 1 where they are the same."""
    low: float
    high: float
    """The 96 % confidence interval of that median."""
    trials: tuple[Trial, ...]

    @property
    def better(self) -> bool:
        """Whether `best` beats `start` beyond noise, and by enough to matter."""
        return self.low > 1.0 and self.ratio >= LEAST_GAIN

    @property
    def chosen(self) -> Serving:
        """What to serve with."""
        return self.best if self.better else self.start

    @property
    def sentence(self) -> str:
        """The outcome for a person."""
        start, best = in_words(self.start), in_words(self.best)
        if self.start == self.best:
            return f"The settings as they are are best: {start}. Nothing that was tried came out ahead."
        measured = f"{self.ratio:.3f} times ({self.low:.3f} to {self.high:.3f}, {DUELS} pairs of measurements)"
        if self.better:
            return f"{best} does {measured} as well as {start}."
        return f"The settings as they are are best: {start}. The nearest, {best}, does {measured} as well."


def tune(
    start: Serving,
    serve: Serve,
    measure: Measure,
    *,
    cores: int,
    concurrency: int,
    p99_ms: float | None = None,
    batches: bool = True,
) -> Tuning:
    """Search from `start` and return how it ended.

    Args:
        start: the settings as they are.
        serve: serves settings side by side.
        measure: measures one of them.
        cores: of the server's machine.
        concurrency: requests that the load keeps in flight: a batch cannot be larger.
        p99_ms: the budget's limit; what exceeds it loses score in proportion.
        batches: whether the model takes batches at all.
    """
    search = _Search(serve, measure, p99_ms)
    best = start
    passes = [along(start, axis, cores, concurrency) for axis in _axes(batches)]
    search.expected = PASSES * sum(_turns(len(values)) for values in passes) + 2 * DUELS
    for _ in range(PASSES):
        before = best
        for axis in _axes(batches):
            best = search.race(along(best, axis, cores, concurrency))
        if best == before:
            break
    low, ratio, high = search.duel(start, best) if best != start else (1.0, 1.0, 1.0)
    search.finish()
    limit = f", p99 within {p99_ms:g} ms" if p99_ms is not None else ""
    return Tuning(f"{concurrency} requests in flight{limit}", start, best, ratio, low, high, tuple(search.trials))


def score(figures: Figures, p99_ms: float | None) -> float:
    """Return good answers a second, less in proportion where p99 is beyond the budget's limit."""
    if p99_ms is None or figures.p99_ms <= p99_ms:
        return figures.throughput
    return figures.throughput * p99_ms / figures.p99_ms


def along(serving: Serving, axis: str, cores: int, concurrency: int) -> list[Serving]:
    """Return `serving` and what differs from it along one axis only."""
    changes: list[dict[str, int]]
    if axis == "instances":
        changes = [{"instances": instances, "threads": threads} for instances, threads in instances_and_threads(cores)]
    elif axis == "batch":
        useful = next((size for size in BATCHES if size >= concurrency), BATCHES[-1])
        changes = [{"max_batch_size": size} for size in BATCHES if size <= useful]
    else:
        changes = [{"queue_delay_us": delay} for delay in DELAYS_US]
    found = [serving]
    for change in changes:
        changed = serving.model_copy(update=change)
        if changed not in found:
            found.append(changed)
    return found


def instances_and_threads(cores: int) -> list[tuple[int, int]]:
    """Return (instances, threads of each) that are worth a try: all cores, half of them, and twice as many instances."""
    halves = {1 << power for power in range(cores.bit_length())} | {cores}
    pairs = {
        (instances, share // instances)
        for share in (cores, cores // 2)
        for instances in halves
        if 0 < instances <= share
    }
    return sorted(pairs | {(2 * cores, 1)})


def in_words(serving: Serving) -> str:
    """Return the searched settings in words."""
    return (
        f"{serving.instances} x {serving.threads} threads, batches up to {serving.max_batch_size}, "
        f"delay {serving.queue_delay_us} us"
    )


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return (low, median, high) of nine or more paired ratios, without any assumption about how they are distributed.

    The second smallest and second largest enclose the true median of nine with probability 1 - 2 * 10 / 2**9 = 0.96.
    """
    ordered = sorted(ratios)
    return ordered[1], statistics.median(ordered), ordered[-2]


def _ratio(new: float, was: float) -> float:
    if was > 0:
        return new / was
    return float("inf") if new > 0 else 1.0


def _axes(batches: bool) -> tuple[str, ...]:
    return ("instances", "batch", "delay") if batches else ("instances",)


def _turns(count: int) -> int:
    """Return how many measurements a race of so many takes."""
    turns = 0
    while count > 1:
        turns += count * _rounds(count)
        count = -(-count // 2)
    return turns


def _rounds(alive: int) -> int:
    """Return how many turns each gets in a heat of so many."""
    return max(1, HEAT // alive)


class _Search:
    """All trials so far, and the two ways of comparing some."""

    def __init__(self, serve: Serve, measure: Measure, p99_ms: float | None) -> None:
        self.trials: list[Trial] = []
        self.expected = 1
        self._serve, self._measure, self._limit, self._done = serve, measure, p99_ms, 0

    def race(self, contestants: Sequence[Serving]) -> Serving:
        """Return the best of `contestants` by successive halving; the first is what they all differ from."""
        if len(contestants) == 1:
            return contestants[0]
        with self._serve(contestants) as names:
            for serving, name in zip(contestants, names, strict=True):
                if name.startswith("!"):
                    self._trial(serving).refused = name[1:]
            alive = [(one, name) for one, name in zip(contestants, names, strict=True) if not name.startswith("!")]
            scores: dict[str, list[float]] = {name: [] for _, name in alive}
            while len(alive) > 1:
                for turn in range(_rounds(len(alive))):
                    for serving, name in alive if turn % 2 == 0 else reversed(alive):
                        scores[name].append(self._turn(serving, name))
                alive.sort(key=lambda pair: -statistics.median(scores[pair[1]]))
                alive = alive[: -(-len(alive) // 2)]
        return alive[0][0] if alive else contestants[0]

    def duel(self, start: Serving, best: Serving) -> tuple[float, float, float]:
        """Return (low, median, high) of the ratio of `best` to `start`, measured in pairs."""
        with self._serve([start, best]) as (was, new):
            ratios = []
            for turn in range(DUELS):
                pair = [(start, was), (best, new)]
                found = {name: self._turn(serving, name) for serving, name in (pair if turn % 2 else pair[::-1])}
                ratios.append(_ratio(found[new], found[was]))
        return interval(ratios)

    def finish(self) -> None:
        """Say that nothing is left to do."""
        report("tuning", done=self._done, total=self._done)

    def _turn(self, serving: Serving, name: str) -> float:
        figures = self._measure(name)
        trial = self._trial(serving)
        trial.figures.append(figures)
        trial.scores.append(score(figures, self._limit))
        self._done += 1
        self.expected = max(self.expected, self._done + 1)
        report("tuning", done=self._done, total=self.expected, score=trial.scores[-1])
        return trial.scores[-1]

    def _trial(self, serving: Serving) -> Trial:
        for trial in self.trials:
            if trial.serving == serving:
                return trial
        self.trials.append(Trial(serving))
        return self.trials[-1]
