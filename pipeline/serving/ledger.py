"""The ledger of promotions: one JSON line for each step, on disk before the next step begins. And one lock a model.

The ledger is the truth of what has been verified to serve; the repository is what a restart would serve. Where they
differ, a promotion was interrupted, and the next one mends it first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline import places

VERIFIED, ROLLED_BACK = "verified", "rolled_back"


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
        """Return the last verification or rollback: ``version`` has served since, ``previous`` is what it replaced."""
        settled = [entry for entry in self.entries() if entry["step"] in {VERIFIED, ROLLED_BACK}]
        return settled[-1] if settled else None

    def before(self, version: int) -> int | None:
        """Return the version that served before `version` did, or None if there was none."""
        verified = [e for e in self.entries() if e["step"] == VERIFIED and e["version"] == version]
        return verified[-1]["previous"] if verified else None


@contextlib.contextmanager
def lock(model: str) -> Iterator[None]:
    """Hold the lock of `model`; it goes with the process, however that ends. Raises `BlockingIOError` if another has it."""
    path = places.serving() / "lock" / model
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another process is changing what {model} serves; try again when it is done"
            ) from error
        yield


def _whole(file: Any) -> int:
    """Return where the last whole line of an open file ends."""
    file.seek(0)
    return int(file.read().rfind(b"\n") + 1)
