"""The ledger of promotions: one JSON line for each step, on disk before the next step begins.

The ledger is the truth of what is to serve: the version that was last verified, or that was decided to go back to. The
repository is what a restart would serve. Where they differ a change was interrupted, and the next one repairs it first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.machine import places

BEGIN = "begin"
STAGED = "staged"
PREFLIGHTED = "preflighted"
CANDIDATE_PLACED = "candidate_placed"
CANDIDATE_PASSED = "candidate_passed"
CANDIDATE_UNLOADED = "candidate_unloaded"
COMMITTED = "committed"
POLICY_WRITTEN = "policy_written"
LOADED = "loaded"
VERIFIED = "verified"
OBSERVED = "observed"
DONE = "done"
STEPS = (
    BEGIN,
    STAGED,
    PREFLIGHTED,
    CANDIDATE_PLACED,
    CANDIDATE_PASSED,
    CANDIDATE_UNLOADED,
    COMMITTED,
    POLICY_WRITTEN,
    LOADED,
    VERIFIED,
    OBSERVED,
    DONE,
)
"""What a promotion that ends well leaves, in this order; a first one has no POLICY_WRITTEN."""

LIVE_TEST = "live_test"
"""Written where a candidate is tried on live requests, between CANDIDATE_PLACED and CANDIDATE_PASSED."""
LIVE_TESTED = "live_tested"
"""How that ended, with what was seen."""
REFUSED = "refused"
ROLLED_BACK = "rolled_back"
"""Written when it is decided, before anything is changed: whoever finds it undone does it."""
WITHDRAWN = "withdrawn"
"""As ROLLED_BACK, where there was nothing to go back to: no version is to serve."""
REVERTED = "reverted"
"""A rollback has been done."""
REPAIRED = "repaired"
FORMERLY_REPAIRED = "mended"
"""What REPAIRED was called in older ledgers."""
REMOVED = "removed"
_SETTLED = {VERIFIED, ROLLED_BACK, WITHDRAWN}


class Ledger:
    """``<serving>/ledger/<model>.jsonl``.

    Args:
        model: whose promotions these are.
    """

    def __init__(self, model: str) -> None:
        self.path = places.serving() / "ledger" / f"{model}.jsonl"

    def append(self, step: str, **what: Any) -> None:
        """Add a line and bring it to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "step": step, **what}
        line = (json.dumps(entry) + "\n").encode()
        with self.path.open("ab+") as file:
            whole = _whole(file)
            if whole != file.seek(0, os.SEEK_END):
                file.truncate(whole)  # a line that its writer was killed in
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[dict[str, Any]]:
        """Return all whole lines, oldest first."""
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines]

    def serving(self) -> Mapping[str, Any] | None:
        """Return the last verification or rollback: ``version`` is to serve since; None where nothing is to serve."""
        settled = [entry for entry in self.entries() if entry["step"] in _SETTLED]
        return settled[-1] if settled and settled[-1]["step"] != WITHDRAWN else None

    def serving_version(self) -> int | None:
        """Return the version that is to serve, or None."""
        settled = self.serving()
        return None if settled is None else int(settled["version"])

    def before(self, version: int) -> int | None:
        """Return the version that served before `version` did, or None if there was none."""
        verified = [e for e in self.entries() if e["step"] == VERIFIED and e["version"] == version]
        return verified[-1]["previous"] if verified else None

    def unobserved(self) -> int | None:
        """Return the version that was verified and then not observed to the end; None if nothing is left to do."""
        since = _after(self.entries(), _SETTLED)
        if not since or since[0]["step"] != VERIFIED:
            return None
        return None if any(entry["step"] == OBSERVED for entry in since) else int(since[0]["version"])

    def begun(self) -> set[int]:
        """Return every version whose promotion has begun at some time."""
        return {int(entry["version"]) for entry in self.entries() if entry["step"] == BEGIN}

    def has_served(self) -> set[int]:
        """Return every version that was verified at some time."""
        return {int(entry["version"]) for entry in self.entries() if entry["step"] == VERIFIED}


def _after(entries: list[dict[str, Any]], steps: set[str]) -> list[dict[str, Any]]:
    """Return the last entry that is one of `steps`, and all that follow it."""
    last = max((place for place, entry in enumerate(entries) if entry["step"] in steps), default=len(entries))
    return entries[last:]


def _whole(file: Any) -> int:
    """Return where the last whole line of an open file ends."""
    file.seek(0)
    return int(file.read().rfind(b"\n") + 1)
