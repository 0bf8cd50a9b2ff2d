"""Probes: requests of one row each that say how fast, how reliably and what a model answers; and when that is too bad.

Triton counts requests, failures and summed times, but no percentiles; its summaries of latency would charge every
request of every client for them. So p99 comes from probes, which wait in the same queue as everybody's requests.

A limit is breached where chance does not explain what was seen: the number of probes beyond it is held to the binomial
distribution, so that a machine's hiccup is no verdict.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.serving.promotion.drift import drift
from pipeline.serving.triton.control import Control, is_reachable
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.golden import Golden
from pipeline.settings.serving import Promote

ALPHA = 0.001
"""How likely chance may breach a limit that holds."""
_SLOW_SHARE = 0.01
"""Share of probes that may be beyond a p99, by what p99 means."""
_NOISE_MS = 20.0
"""Below it a busy machine's scheduler decides, not the model: a ratio of latencies says nothing."""
_LONGEST_SECONDS = 5.0


@dataclass
class Probes:
    """What probes have met."""

    latencies_ms: list[float] = field(default_factory=list)
    """Of answered ones, in the order in which they were sent."""
    failures: dict[str, int] = field(default_factory=dict)
    """gRPC status -> probes."""
    classes: dict[int, int] = field(default_factory=dict)
    """Row of the golden inputs -> predicted class; empty where the answers are no classes."""

    @property
    def p99_ms(self) -> float:
        """99th percentile of the answered probes; infinite where none was."""
        return float(np.quantile(self.latencies_ms, 0.99, method="inverted_cdf")) if self.latencies_ms else math.inf

    def send(self, control: Control, model: str, golden: Golden, row: int, version: str = "") -> None:
        """Ask `model` about one row. Raises `TritonError` only where the server cannot be reached."""
        begin = time.perf_counter()
        try:
            answer = control.infer(model, golden.row(row), version)
        except TritonError as error:
            if not is_reachable(control):
                raise
            self.failures[error.status] = self.failures.get(error.status, 0) + 1
            return
        self.latencies_ms.append(1e3 * (time.perf_counter() - begin))
        output = answer.outputs[next(iter(golden.outputs))]
        if output.ndim == 2 and output.shape[0] == 1 and output.shape[1] > 1:
            self.classes[row] = int(np.argmax(output[0]))


@dataclass(frozen=True)
class Limits:
    """What probes are held to."""

    p99_ms: float
    """Infinite for none."""
    error_rate: float
    drift: float


def limits(config: Promote, before: Probes | None) -> Limits:
    """Return what a version is held to that takes the place of the one that `before` looked at."""
    relative = max(_NOISE_MS, config.max_p99_ratio * before.p99_ms) if before and before.latencies_ms else math.inf
    return Limits(min(relative, config.max_p99_ms or math.inf), config.max_error_rate, config.max_drift)


def probe(control: Control, model: str, golden: Golden, count: int, version: str = "") -> Probes:
    """Send `count` probes one after another, fewer where they take longer than 5 seconds, and return what they met."""
    seen = Probes()
    end = time.monotonic() + _LONGEST_SECONDS
    for number in range(count):
        if time.monotonic() > end:
            break
        seen.send(control, model, golden, number % len(golden), version)
    return seen


def breach(seen: Probes, before: Probes | None, limit: Limits, alpha: float = ALPHA) -> str | None:
    """Return which limit `seen` breaches, in words, or None."""
    failed = sum(seen.failures.values())
    if too_many(failed, failed + len(seen.latencies_ms), limit.error_rate, alpha):
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(seen.failures.items()))
        return f"{failed} of {failed + len(seen.latencies_ms)} probes failed ({statuses}), allowed is a share of {limit.error_rate:g}"
    slow = sum(latency > limit.p99_ms for latency in seen.latencies_ms)
    if too_many(slow, len(seen.latencies_ms), _SLOW_SHARE, alpha):
        return (
            f"too slow: {slow} of {len(seen.latencies_ms)} probes took longer than the {limit.p99_ms:.3g} ms allowed for "
            f"the p99, which is {seen.p99_ms:.3g} ms"
            + (f" and was {before.p99_ms:.3g} ms with the version before" if before else "")
            + " (promote.max_p99_ms, promote.max_p99_ratio)"
        )
    distance, chance = moved(seen, before)
    if distance > limit.drift and chance < ALPHA:  # the same inputs each time: looking again is no new chance
        return (
            f"the predictions have drifted: {distance:.0%} of {len(seen.classes)} golden inputs' predictions moved to "
            f"other classes against the version before (p = {chance:.2g}), allowed is promote.max_drift = {limit.drift:g}"
        )
    return None


def moved(seen: Probes, before: Probes | None) -> tuple[float, float]:
    """Return (distance, p) of the predicted classes against the version before; (0, 1) where they cannot be compared."""
    rows = sorted(set(seen.classes) & set(before.classes)) if before else []
    if not rows or before is None:
        return 0.0, 1.0
    return drift([before.classes[row] for row in rows], [seen.classes[row] for row in rows])


def too_many(count: int, of: int, share: float, alpha: float) -> bool:
    """Return whether `count` or more `of` so many would come with a probability below `alpha` if each had `share`.

    The exact upper tail of the binomial distribution.
    """
    if count == 0 or share >= 1.0:
        return False
    if share == 0.0:
        return True
    log_term = _log_binomial(count, of, share)
    total, term = 0.0, math.exp(log_term)
    for number in range(count, of + 1):
        total += term
        if term < 1e-12 * total and number > of * share:
            break
        term *= (of - number) / (number + 1) * share / (1.0 - share)
    return total < alpha


def _log_binomial(count: int, of: int, share: float) -> float:
    choose = math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)
    return choose + count * math.log(share) + (of - count) * math.log1p(-share)


def evidence(seen: Probes, before: Probes | None) -> Mapping[str, float]:
    """Return the figures of `seen` for the ledger."""
    distance, chance = moved(seen, before)
    figures = {"probes": float(len(seen.latencies_ms)), "probe_failures": float(sum(seen.failures.values()))}
    if seen.latencies_ms:
        figures["p99_ms"] = round(seen.p99_ms, 3)
    if before is not None and before.latencies_ms:
        figures["p99_ms_before"] = round(before.p99_ms, 3)
    if before is not None and before.classes:
        figures |= {"drift": round(distance, 4), "drift_p": round(chance, 4)}
    return figures
