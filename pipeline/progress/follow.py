"""Follow the progress file of a running stage: curves to MLflow, a line now and then to whoever waits.

The other end of `progress.report()`. A stage may write from several processes; lines are whole because each is one write.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
_POLL_SECONDS = 0.5
_LINE_SECONDS = 5.0


class EventFile:
    """A file that events are appended to, read from where it was left.

    Args:
        file: what `progress.report()` appends to; need not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._position = file, 0

    def read(self) -> list[Event]:
        """Return the events since the last call; half a line waits for its other half."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as file:
            file.seek(self._position)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Follower:
    """Reads events as they are appended to `file`, in a thread, until `close()`.

    Args:
        file: what `progress.report()` appends to; need not exist yet.
        on_events: gets each batch of new events, in order.
        say: gets one line for a person about every five seconds and at the end of each piece of work.
        stage: name to put in front of the lines.
    """

    def __init__(
        self, file: Path, stage: str, on_events: Callable[[list[Event]], None], say: Callable[[str], None]
    ) -> None:
        self._events = EventFile(file)
        self._stage = stage
        self._on_events = on_events
        self._say = say
        self._said = 0.0
        self._begun: dict[str, Event] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"follow-{stage}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read what is left and stop."""
        self._stop.set()
        self._thread.join()
        self._read()

    def _loop(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        if events := self._events.read():
            self._on_events(events)
            self._tell(events[-1])

    def _tell(self, event: Event) -> None:
        first = self._begun.setdefault(event["what"], event)
        now = time.monotonic()
        if now - self._said < _LINE_SECONDS and share(event) < 1.0:
            return
        self._said = now
        values = " ".join(f"{name} {value:.4g}" for name, value in event["metrics"].items())
        eta = remaining_seconds(first, event)
        left = f" ETA {eta:.0f} s" if eta else ""
        self._say(f"[{self._stage}] {event['what']} {100 * share(event):.0f} %{left} {values}".rstrip())


def share(event: Event) -> float:
    """Return how much of its work is done at an event, from 0 to 1; work without a length is done at once."""
    return min(max(event["done"] / event["total"], 0.0), 1.0) if event["total"] > 0 else 1.0


def remaining_seconds(first: Event, last: Event) -> float | None:
    """Return how long the rest takes at the pace between two events of the same work, or None while it cannot be told."""
    done, passed = last["done"] - first["done"], last["time"] - first["time"]
    if done <= 0 or passed <= 0:
        return None
    return max(last["total"] - last["done"], 0) * passed / done
