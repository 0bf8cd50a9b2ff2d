"""Every error Flyweight raises on purpose.

    Exception
    ├── FlyweightError            a retry would fail the same way        exit code 2, Airflow does not retry
    │   ├── SettingsError         a setting is unknown, mistyped, out of range or contradicts another
    │   ├── DataError             the data is missing, damaged or fails an expectation
    │   ├── ModelError            a model cannot be built, loaded, pruned, quantized or exported
    │   ├── BudgetError           no candidate is inside the budget (the verdict is INFEASIBLE)
    │   └── PromotionError        a candidate was refused on its way into the served repository
    ├── Skipped                   the stage cannot run here and says why   exit code 3, Airflow shows "skipped"
    └── anything else             may pass on a retry                     exit code 1
    BaseException
    └── Interrupted               the process was told to stop            exit code 143

A message names the setting, its value, what is allowed and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlyweightError(Exception):
    """The user can fix this and a retry cannot."""


class SettingsError(FlyweightError):
    """A setting is unknown, mistyped, out of range or contradicts another."""


class DataError(FlyweightError):
    """The data is missing, damaged or fails an expectation."""


class ModelError(FlyweightError):
    """A model cannot be built, loaded, pruned, quantized or exported."""


class BudgetError(FlyweightError):
    """No candidate is inside the budget."""


class PromotionError(FlyweightError):
    """A candidate was refused on its way into the served repository."""


class Skipped(Exception):
    """A stage cannot run on this machine; the message is the reason. Not an error: its run ends FINISHED and tagged."""


class Interrupted(BaseException):
    """The process was told to stop (SIGTERM). Not an Exception, so that no stage takes it for an error of its own."""


def near_miss(word: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'epochs'?`` where `allowed` holds something close to `word`, else an empty string."""
    words = list(allowed)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    close += [other for other in words if len(word) > 2 and (other.startswith(word) or word.startswith(other))]
    return f"; did you mean {close[0]!r}?" if close else ""
