"""What the ledger tells a person: each change of what a model serves, who it replaced and why it did not last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.serving.promotion import ledger
from pipeline.serving.promotion.ledger import Ledger

_STEPS = {*ledger.STEPS, ledger.LIVE_TEST, ledger.LIVE_TESTED, ledger.ROLLED_BACK}


@dataclass(frozen=True)
class Event:
    """One line of the history."""

    time: str
    version: int | None
    what: str
    detail: str


def events(model: str) -> list[Event]:
    """Return what happened to `model`, oldest first."""
    found, begun = [], {}
    for entry in Ledger(model).entries():
        if entry["step"] == ledger.BEGIN:
            begun[entry["version"]] = entry
        said = _say(entry, begun.get(entry.get("version"), {}))
        if said:
            when = datetime.fromisoformat(entry["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
            found.append(Event(when, entry.get("version"), *said))
    return found


def interrupted(model: str) -> str | None:
    """Return in words the last change if it has not come to its end, or None."""
    ends = {ledger.DONE, ledger.REFUSED, ledger.REVERTED, ledger.WITHDRAWN}
    entries = [entry for entry in Ledger(model).entries() if entry["step"] in {*_STEPS, *ends}]
    if not entries or entries[-1]["step"] in ends:
        return None
    return f"version {entries[-1]['version']}: the last step was {entries[-1]['step']}; `flyweight reconcile` ends it"


def _say(entry: Mapping[str, Any], begun: Mapping[str, Any]) -> tuple[str, str] | None:
    match entry["step"]:
        case ledger.VERIFIED:
            after = f"after version {entry['previous']}" if entry["previous"] else "the first"
            return "live", f"{after}, SHA-256 {entry['sha256'][:12]}{_took(begun, entry)}"
        case ledger.LIVE_TEST:
            return entry["kind"], f"of {entry['share']:.3g} of the live requests"
        case ledger.LIVE_TESTED:
            return entry["verdict"], f"as {entry['kind']}: {_figures(entry)}"
        case ledger.OBSERVED:
            return "observed", _figures(entry)
        case ledger.DONE:
            return "champion", ""
        case ledger.REFUSED:
            return "refused", entry["reason"]
        case ledger.ROLLED_BACK:
            why = entry.get("reason")
            return (
                "taken back" if why else "rolled back",
                f"from version {entry['previous']}{f': {why}' if why else ''}",
            )
        case ledger.WITHDRAWN:
            return "withdrawn", entry["reason"]
        case ledger.REPAIRED | ledger.FORMERLY_REPAIRED:
            return "repaired" if not entry["advice"] else "found", entry["what"]
        case ledger.REMOVED:
            return "removed", "its files, by gc"
    return None


def _took(begun: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    if not begun:
        return ""
    seconds = (datetime.fromisoformat(ended["time"]) - datetime.fromisoformat(begun["time"])).total_seconds()
    return f", {seconds:.1f} s from its beginning"


def _figures(entry: Mapping[str, Any]) -> str:
    names = {
        "requests": "requests",
        "tried": "of them tried",
        "failed": "failed",
        "p99_ms": "ms p99",
        "p99_ms_before": "ms before",
        "drift": "drift",
        "other": "answered otherwise",
    }
    return ", ".join(f"{entry[key]:g} {name}" for key, name in names.items() if key in entry)
