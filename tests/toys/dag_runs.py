"""Runs of the DAG on the stack of tests/integration."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console

from pipeline.machine import places
from pipeline.services import demo
from pipeline.tracking import evidence

EPOCHS = 9
"""Epochs of the teacher in every run here: the same settings, so that all runs but the first reuse what that one made."""


@dataclass(frozen=True)
class Ended:
    """A run of the DAG on digits that is over."""

    code: int
    said: str
    found: dict[str, Any]
    """What `evidence.gather` knows of it."""

    @property
    def run_id(self) -> str:
        """Airflow's name of it."""
        return self.found["pipeline"]


def run_dag(changed: Mapping[str, Any] | None = None) -> Ended:
    """Run the DAG on digits as the demo does, with some settings `changed`."""
    said = io.StringIO()
    code = demo.run("digits", {"train.fit.epochs": EPOCHS, **(changed or {})}, console=Console(file=said, width=200))
    return Ended(code, said.getvalue(), evidence.gather("latest"))


def trainers() -> list[psutil.Process]:
    """The processes that train for our stack."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "pipeline.training.distributed.worker" in (process.info["cmdline"] or []):
            try:
                ours = process.environ().get("FLYWEIGHT_HOME") == str(places.home())
            except psutil.Error:
                continue
            found += [process] if ours else []
    return found
