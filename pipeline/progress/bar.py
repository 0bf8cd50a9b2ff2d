"""Show what `progress.report()` says inside a block: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.progress import events
from pipeline.progress.follow import Event, Follower, share


@contextlib.contextmanager
def shown(title: str, say: Callable[[str], None]) -> Iterator[None]:
    """Follow the block's progress under `title`; `say` gets the lines where standard error is no terminal.

    Inside a stage, which is followed already, nothing is done.
    """
    if os.environ.get(events.ENVIRONMENT):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="flyweight-progress-") as directory,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("", total=None)

        def on_events(events: list[Event]) -> None:
            last = events[-1]
            values = " ".join(f"{name} {value:.4g}" for name, value in last["metrics"].items())
            bar.update(task, completed=share(last), total=1.0, description=values)

        file = Path(directory) / "progress.jsonl"
        os.environ[events.ENVIRONMENT] = str(file)
        follower = Follower(file, title, on_events, (lambda line: None) if console.is_terminal else say)
        try:
            yield
        finally:
            follower.close()
            del os.environ[events.ENVIRONMENT]
