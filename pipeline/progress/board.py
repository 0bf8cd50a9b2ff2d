"""What a running pipeline looks like to the person who waits: a table that redraws itself, or a plain log.

Fed with the state of Airflow's tasks, with the notes that stages leave on the parent run, and with the progress events that
`run_stage` appends to ``<home>/run/progress/<pipeline>.jsonl``. Knows neither Airflow nor MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import rich.box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.progress.follow import Event, remaining_seconds, share

ENDED = frozenset({"done", "reused", "skipped", "failed", "not run"})
_WORDS = {
    None: "waiting",
    "scheduled": "waiting",
    "queued": "waiting",
    "running": "running",
    "success": "done",
    "failed": "failed",
    "upstream_failed": "not run",
    "skipped": "skipped",
    "removed": "not run",
    "awaiting_input": "waits for a person",
    "up_for_retry": "to be retried",
    "restarting": "to be retried",
}
_STYLES = {"running": "bold cyan", "done": "green", "reused": "green", "failed": "bold red", "waiting": "dim"}
_LINE_SECONDS = 10.0
_METRICS = 3  # as many as fit into a line


@dataclass
class StageView:
    """One task as it is shown."""

    name: str
    state: str = "waiting"
    """A word for people: waiting, running, done, reused, skipped, to be retried, failed, not run."""
    seconds: float | None = None
    reason: str = ""
    first: Event | None = None
    """First event of the piece of work that the stage is at."""
    last: Event | None = None

    @property
    def percent(self) -> str:
        """How much of the present piece of work is done."""
        return f"{100 * share(self.last):.0f} %" if self.last and self.state == "running" else ""

    @property
    def eta(self) -> str:
        """How long the present piece of work still takes."""
        if not self.first or not self.last or self.state != "running":
            return ""
        left = remaining_seconds(self.first, self.last)
        return "" if left is None else duration(left)

    @property
    def doing(self) -> str:
        """What the stage is at with its last metrics, or why it ended as it did."""
        if self.state != "running" or not self.last:
            return self.reason
        metrics = [f"{name} {value:.4g}" for name, value in list(self.last["metrics"].items())[:_METRICS]]
        return ", ".join([self.last["what"], *metrics])

    def line(self) -> str:
        """Return all of it as one line of a log."""
        took = f"in {duration(self.seconds)}" if self.seconds and self.state in ENDED else ""
        eta = f"ETA {self.eta}" if self.eta else ""
        return " ".join(part for part in (self.name, self.state, took, self.percent, eta, self.doing) if part)


@dataclass
class Board:
    """Every task of one run, in the order in which they can run."""

    pipeline: str
    stages: dict[str, StageView]
    begun: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, pipeline: str, names: Iterable[str]) -> Board:
        """Return a board on which everything waits."""
        return cls(pipeline, {name: StageView(name) for name in names})

    def tasks(self, instances: Iterable[Mapping[str, Any]]) -> None:
        """Take in Airflow's task instances."""
        for instance in instances:
            view = self.stages.setdefault(instance["task_id"], StageView(instance["task_id"]))
            state = _WORDS.get(instance["state"], instance["state"])
            if state == "running" and view.state != "running":
                view.first = view.last = None  # what a former attempt said
            view.state = "reused" if view.state == "reused" and state == "done" else state
            view.seconds = instance.get("duration")

    def notes(self, notes: Iterable[Mapping[str, Any]]) -> None:
        """Take in how stages ended: ``{"stage", "status", "reason"}``."""
        for note in notes:
            view = self.stages.get(note["stage"])
            if view and view.state in ENDED:
                view.reason = note["reason"]
                if note["status"] == "reused" and view.state == "done":
                    view.state = "reused"

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in progress events."""
        for event in events:
            view = self.stages.get(event["stage"])
            if view:
                if not view.last or view.last["what"] != event["what"]:
                    view.first = event
                view.last = event

    def drawn(self) -> Table:
        """Return the board as a table."""
        table = Table(box=rich.box.SIMPLE, title=f"{self.pipeline}, {duration(time.monotonic() - self.begun)}")
        for head, justify in (("stage", "left"), ("state", "left"), ("done", "right"), ("ETA", "right")):
            table.add_column(head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column("took", justify="right", no_wrap=True)
        table.add_column("", overflow="ellipsis", no_wrap=True)
        for view in self.stages.values():
            took = duration(view.seconds) if view.seconds is not None else ""
            row = (view.name, view.state, view.percent, view.eta, took, view.doing)
            table.add_row(*row, style=_STYLES.get(view.state))
        return table


class LiveTable:
    """Draws the board again and again in the same place of a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, board: Board) -> None:
        """Draw `board` as it is now."""
        self._live.update(board.drawn(), refresh=True)


class PlainLog:
    """One line for each change, and every ten seconds one on what runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> PlainLog:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, board: Board) -> None:
        """Say what is new on `board`."""
        now = time.monotonic()
        for view in board.stages.values():
            changed = self._states.get(view.name, "waiting") != view.state
            due = view.state == "running" and view.last and now - self._said.get(view.name, now) >= _LINE_SECONDS
            if changed or due:
                self._said[view.name] = now
                self._states[view.name] = view.state
                self._console.print(
                    f"[{duration(now - board.begun):>8}] {view.line()}", markup=False, highlight=False, soft_wrap=True
                )


def duration(seconds: float) -> str:
    """81.4 -> '1 min 21 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
