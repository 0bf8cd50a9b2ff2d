"""`verdict.json` as types: what the gate said to what was measured.

Light: the DAG, the command line and `promote` may import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pipeline.records.record import Record, read, write

VERDICT_FILE = "verdict.json"


class Check(Record):
    """One limit of the budget, held against one candidate."""

    criterion: str
    """A setting of `budget`, or `failed_requests`, whose limit is always 0."""
    on: str
    """Where the value comes from: validation, test, offline, served or file."""
    limit: float
    value: float
    """What is held to the limit: the unfavourable end of the interval where the measurement has one."""
    ok: bool
    shortfall: float
    """How far the value misses the limit, as a share of the limit; 0 where it holds."""
    text: str
    """The check in words and in the user's units."""


class CandidateVerdict(Record):
    """How one candidate stands at the gate."""

    name: str
    eligible: bool
    reason: str | None = None
    """Why it is not eligible."""
    feasible: bool = False
    """Whether every check holds."""
    shortfall: float = 0.0
    """Sum over its checks."""
    checks: tuple[Check, ...] = ()


class EqualSpeed(Record):
    """Candidates whose throughput does not differ by more than chance and `budget.equal_speed`, and what chose among them."""

    fastest: str
    names: tuple[str, ...]
    """All of them in order of preference: the chosen one first."""
    broken_by: Literal["smaller file", "fewer MACs", "earlier step"]
    text: str
    """The same in words."""


class Verdict(Record):
    """The content of `verdict.json`."""

    verdict: Literal["PROMOTE", "INFEASIBLE"]
    winner: str | None = None
    nearest: str | None = None
    """The candidate that misses least; None beside a winner or where nothing was eligible."""
    misses: tuple[Check, ...] = ()
    """The checks that the nearest candidate fails."""
    ties: EqualSpeed | None = None
    """None where no other candidate counts as equally fast."""
    sentence: str
    rule: str
    """How a winner is chosen, in words."""
    budget: dict[str, Any]
    candidates: tuple[CandidateVerdict, ...] = ()


def load_verdict(directory: Path) -> Verdict:
    """Return `verdict.json` of `directory`. Raises `ModelError`."""
    return read(directory / VERDICT_FILE, Verdict, "evaluate")


def save_verdict(directory: Path, verdict: Verdict) -> Path:
    """Write `verdict.json` into `directory` and return the file."""
    return write(directory / VERDICT_FILE, verdict)
