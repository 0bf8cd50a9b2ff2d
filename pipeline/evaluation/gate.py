"""The gate: what was measured and what the user can afford in, a verdict out. A pure function.

The validation split nominates, the test split decides. Choosing among candidates by their test accuracy would make the
winner's test accuracy a flattering one, so the candidates are compared on validation images, one of them is nominated,
and that one alone is held to the budget on the test images, once. What was measured with an interval is held to the
budget by its unfavourable end. See docs/decisions/gate.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.evaluation.preference import offline_ratio, order, preferred, served_ratio
from pipeline.records.evaluation import TEACHER, Measured
from pipeline.records.measures import Estimate
from pipeline.records.verdict import CandidateVerdict, Check, EqualSpeed, Verdict
from pipeline.settings.gate import Budget

RULE = (
    "Every limit is held against the unfavourable end of the measurement's interval. Nominated is the fastest through Triton "
    "at the largest concurrency of the candidates that hold every limit on the validation split. A candidate counts as equally "
    "fast unless its turns show it to be slower than the fastest by more than budget.equal_speed; among those equally fast it is "
    "the smallest file, then the fewest MACs, then the earliest step. If none holds every limit, it is the one that misses "
    "least: the smallest sum of shortfalls, each a share of its limit. "
    "An int8 candidate that was found to be slower than its float original gives way to it where that one misses no more. "
    "The nominee alone is then held to the accuracy limit on the test split, where it counts."
)
_MINIMUM_DROP = 0.001
"""Shortfalls of accuracy are shares of the limit, or of a tenth of a point where the limit is smaller (it may be 0)."""
_CURES = {
    "accuracy_drop": "train longer (distill.fit.epochs, prune.fit.epochs)",
    "size_ratio": "prune further (prune.pruner.keep_macs) or take a narrower student (distill.model.width)",
    "max_size_mb": "prune further (prune.pruner.keep_macs) or take a narrower student (distill.model.width)",
    "speedup": "prune further (prune.pruner.keep_macs) or take a narrower student (distill.model.width)",
    "served_speedup": "prune further (prune.pruner.keep_macs) or take a narrower student (distill.model.width)",
    "p99_ms": "let Triton answer faster (serving.instances, serving.queue_delay_us)",
    "failed_requests": "see Triton's log for why it refused requests",
}


def decide(teacher: Measured, candidates: Sequence[Measured], budget: Budget, confidence: float) -> Verdict:
    """Return PROMOTE with one winner, or INFEASIBLE with the nearest candidate and what it misses.

    Args:
        teacher: what the others are compared with; it never wins.
        candidates: everything else that was measured (the teacher among them is passed over).
        budget: the limits.
        confidence: level of the intervals in the measurements, for the words alone.
    """
    measured = [candidate for candidate in candidates if candidate.name != TEACHER]
    standings = [_stand(teacher, candidate, budget, confidence, "validation") for candidate in measured]
    nominee, ties = _nominate(measured, standings, budget, confidence)
    if nominee is None:
        reasons = "; ".join(f"{standing.name}: {standing.reason}" for standing in standings) or "there is none"
        return _verdict("INFEASIBLE", budget, standings, f"INFEASIBLE: no candidate can be promoted: {reasons}")
    final = _stand(teacher, nominee, budget, confidence, "test")
    standings = [final if standing.name == nominee.name else standing for standing in standings]
    if final.feasible:
        return _verdict("PROMOTE", budget, standings, _praise(final, ties), winner=nominee.name, ties=ties)
    misses = tuple(check for check in final.checks if not check.ok)
    sentence = _advice(nominee.name, misses)
    return _verdict("INFEASIBLE", budget, standings, sentence, nearest=nominee.name, misses=misses, ties=ties)


def ineligible(candidate: Measured) -> str | None:
    """Return why `candidate` cannot be promoted whatever it measures, or None where it can be."""
    if candidate.target == "tensorrt":
        return "its graph is written for TensorRT and Triton runs ONNX Runtime on the CPU here"
    if not candidate.served:
        return candidate.note or "it was not measured through Triton"
    if candidate.served_parity and candidate.served_parity.differing:
        parity = candidate.served_parity
        return f"Triton answers {parity.differing} of {parity.images} images differently than the same file does here"
    return None


def _stand(
    teacher: Measured, candidate: Measured, budget: Budget, confidence: float, split: Literal["validation", "test"]
) -> CandidateVerdict:
    """Hold `candidate` to every limit, to that of accuracy on `split`."""
    reason = ineligible(candidate)
    if reason:
        return CandidateVerdict(name=candidate.name, eligible=False, reason=reason)
    checks = [_accuracy(candidate, budget, confidence, split), *_size(teacher, candidate, budget)]
    checks += _speed(teacher, candidate, budget, confidence)
    return CandidateVerdict(
        name=candidate.name,
        eligible=True,
        feasible=all(check.ok for check in checks),
        shortfall=sum(check.shortfall for check in checks),
        checks=tuple(checks),
    )


def _nominate(
    candidates: Sequence[Measured], standings: Sequence[CandidateVerdict], budget: Budget, confidence: float
) -> tuple[Measured | None, EqualSpeed | None]:
    """Return the candidate that the test split gets to see, by `RULE`, and what it is as fast as; None where none is eligible."""
    eligible = [(c, s) for c, s in zip(candidates, standings, strict=True) if s.eligible]
    shortfall = {candidate.name: standing.shortfall for candidate, standing in eligible}
    eligible = [(c, s) for c, s in eligible if shortfall.get(c.gives_way_to or "", float("inf")) > s.shortfall]
    feasible = [candidate for candidate, standing in eligible if standing.feasible]
    if feasible:
        return preferred(feasible, budget.equal_speed, confidence)
    if eligible:
        return min(eligible, key=lambda pair: (pair[1].shortfall, *order(pair[0])))[0], None
    return None, None


def _accuracy(candidate: Measured, budget: Budget, confidence: float, split: Literal["validation", "test"]) -> Check:
    quality = candidate.test if split == "test" else candidate.validation
    assert quality is not None and quality.drop is not None, f"{candidate.name} was served but not evaluated"
    drop, limit = quality.drop, budget.accuracy_drop
    return Check(
        criterion="accuracy_drop",
        on=split,
        limit=limit,
        value=drop.high,
        ok=drop.high <= limit,
        shortfall=max(0.0, (drop.high - limit) / max(limit, _MINIMUM_DROP)),
        text=f"accuracy drop {100 * drop.value:.2f} points on {split} images (upper {100 * confidence:g} % bound "
        f"{100 * drop.high:.2f}) where {100 * limit:.2f} is allowed",
    )


def _size(teacher: Measured, candidate: Measured, budget: Budget) -> list[Check]:
    ratio = teacher.size_bytes / candidate.size_bytes
    text = f"{ratio:.2f}x smaller than the teacher where {budget.size_ratio:g}x is asked"
    checks = [_at_least("size_ratio", "file", ratio, budget.size_ratio, text)]
    if budget.max_size_mb is not None:
        size = candidate.size_bytes / 1e6
        text = f"{size:.3f} MB where {budget.max_size_mb:g} MB is allowed"
        checks.append(_at_most("max_size_mb", "file", size, budget.max_size_mb, text))
    return checks


def _speed(teacher: Measured, candidate: Measured, budget: Budget, confidence: float) -> list[Check]:
    batch, concurrency = max(candidate.offline), max(candidate.served)
    offline = offline_ratio(candidate, teacher, confidence)
    served = served_ratio(candidate, teacher, confidence)
    failures = sum(load.failures for load in candidate.served.values())
    checks = [
        _at_least(
            "speedup", "offline", offline.low, budget.speedup,
            f"{offline.value:.2f}x the teacher's images/s offline at batch {batch}{_bound(offline, 'lower', confidence)} "
            f"where {budget.speedup:g}x is asked",
        ),
        _at_least(
            "served_speedup", "served", served.low, budget.served_speedup,
            f"{served.value:.2f}x the teacher's throughput through Triton at concurrency {concurrency}"
            f"{_bound(served, 'lower', confidence)} where {budget.served_speedup:g}x is asked",
        ),
        _at_most("failed_requests", "served", failures, 0, f"{failures} failed requests through Triton where 0 are allowed"),
    ]  # fmt: skip
    if budget.p99_ms is not None:
        load = candidate.served[budget.at_concurrency]
        p99 = Estimate(value=load.p99_ms, low=load.p99_ms, high=load.p99_ms)
        if load.p99_interval:
            p99 = Estimate(value=load.p99_ms, **load.p99_interval.model_dump())
        text = (
            f"p99 {p99.value:.2f} ms through Triton at concurrency {budget.at_concurrency}{_bound(p99, 'upper', confidence)} "
            f"where {budget.p99_ms:g} ms is allowed"
        )
        checks.append(_at_most("p99_ms", "served", p99.high, budget.p99_ms, text))
    return checks


def _bound(estimate: Estimate, side: Literal["lower", "upper"], confidence: float) -> str:
    """' (lower 95 % bound 3.10)'; nothing for a value without an interval."""
    if estimate.low == estimate.high:
        return ""
    return f" ({side} {100 * confidence:g} % bound {estimate.low if side == 'lower' else estimate.high:.2f})"


def _at_least(criterion: str, on: str, value: float, limit: float, text: str) -> Check:
    shortfall = max(0.0, (limit - value) / limit)
    return Check(
        criterion=criterion, on=on, limit=limit, value=value, ok=value >= limit, shortfall=shortfall, text=text
    )


def _at_most(criterion: str, on: str, value: float, limit: float, text: str) -> Check:
    shortfall = max(0.0, (value - limit) / (limit or 1.0))
    return Check(
        criterion=criterion, on=on, limit=limit, value=value, ok=value <= limit, shortfall=shortfall, text=text
    )


def _praise(standing: CandidateVerdict, ties: EqualSpeed | None) -> str:
    said = [*(check.text for check in standing.checks), *([ties.text] if ties else [])]
    return f"PROMOTE: {standing.name}: " + "; ".join(said)


def _advice(name: str, misses: Sequence[Check]) -> str:
    """One sentence: what misses, by how much, and what can be done about it."""
    loosen = [
        f"{'raise' if check.value > check.limit else 'lower'} budget.{check.criterion}"
        for check in misses
        if check.criterion != "failed_requests"
    ]
    cures = list(dict.fromkeys(_CURES[check.criterion] for check in misses))
    missed = "; ".join(check.text for check in misses)
    return f"INFEASIBLE: nearest is {name}: {missed}; {' or '.join([*loosen, *cures])}"


def _verdict(
    verdict: Literal["PROMOTE", "INFEASIBLE"],
    budget: Budget,
    standings: Sequence[CandidateVerdict],
    sentence: str,
    *,
    winner: str | None = None,
    nearest: str | None = None,
    misses: tuple[Check, ...] = (),
    ties: EqualSpeed | None = None,
) -> Verdict:
    return Verdict(
        verdict=verdict,
        winner=winner,
        nearest=nearest,
        misses=misses,
        ties=ties,
        sentence=sentence,
        rule=RULE,
        budget=budget.model_dump(),
        candidates=tuple(standings),
    )
