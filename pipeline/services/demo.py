"""Run the DAG through Airflow, show how it goes, and end with what it proved and where to look: `flyweight demo`."""

from __future__ import annotations

import contextlib
import graphlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from pipeline.errors import FlyweightError
from pipeline.machine import places
from pipeline.progress.board import Board, LiveTable, PlainLog, duration
from pipeline.progress.follow import EventFile
from pipeline.services.airflow_client import AirflowClient
from pipeline.services.airflow_settings import USER, password_file
from pipeline.settings.form import FORCE, RECIPE
from pipeline.tracking import evidence, rest

DAG = "make_proxy"
_POLL_SECONDS = 2.0
_DAG_DEADLINE_SECONDS = 90.0
_LOG_WIDTH = 140  # for a table in a log
_NO_RETRY = "AirflowFailException"
"""What the operator raises where a retry would fail the same way."""


def run(recipe: str, overrides: Mapping[str, Any], *, force: bool = False, console: Console | None = None) -> int:
    """Start a run of the DAG, follow it to its end, and print the table, the verdict and where to look.

    Args:
        recipe: overlay on params.yaml.
        overrides: dotted setting -> value.
        force: run every stage, even where a finished run did the same.
        console: where to print; a terminal gets a live table, anything else a plain log.

    Returns the exit code: 0 done, 2 failed so that a retry would fail the same way, 1 failed or interrupted otherwise.
    """
    console = console or Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    airflow = AirflowClient()
    tasks = _wait_for_dag(airflow)
    name = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    conf = {RECIPE: recipe, **overrides} | ({FORCE: True} if force else {})
    airflow.trigger(DAG, name, conf)
    _say(console, f"started {name}: {_run_url(name)}")
    try:
        state, board = follow(airflow, name, tasks, console)
    except KeyboardInterrupt:
        _say(
            console,
            f"\n{name} goes on without this display: {_run_url(name)}\n"
            f"To stop it, mark the run as failed there; `flyweight down` stops everything.",
        )
        return 1
    took = duration(time.monotonic() - board.begun)
    if state == "success":
        _print_evidence(console, name, took)
    else:
        _say(console, f"\n{name} failed after {took}: {_run_url(name)}")
    return _print_failures(console, airflow, name)


def follow(airflow: AirflowClient, name: str, tasks: list[str], console: Console) -> tuple[str, Board]:
    """Show the DAG run `name` until it has ended; return its last state and the board."""
    board = Board.of(name, tasks)
    progress = EventFile(places.progress_file(name))
    with LiveTable(console) if console.is_terminal else PlainLog(console) as display:
        while True:
            state = airflow.get(f"dags/{DAG}/dagRuns/{name}")["state"]
            board.tasks(_instances(airflow, name))
            board.events(progress.read())
            board.notes(_notes(name))
            display.show(board)
            if state in {"success", "failed"}:
                return state, board
            time.sleep(_POLL_SECONDS)


def _wait_for_dag(airflow: AirflowClient) -> list[str]:
    """Wait until Airflow has parsed the DAG; return its tasks in an order in which they can run."""
    end = time.monotonic() + _DAG_DEADLINE_SECONDS
    while not (dag := airflow.get(f"dags/{DAG}")) or dag["is_stale"]:
        errors = airflow.get("importErrors")["import_errors"]
        if errors:
            raise FlyweightError(f"Airflow cannot import {errors[0]['filename']}:\n{errors[0]['stack_trace']}")
        if time.monotonic() > end:
            raise ConnectionError(
                f"Airflow has not found the DAG {DAG} within {_DAG_DEADLINE_SECONDS:.0f} s; "
                f"see {places.home() / 'logs' / 'airflow-dag-processor.log'}"
            )
        time.sleep(_POLL_SECONDS)
    if dag["is_paused"]:
        raise FlyweightError(f"the DAG {DAG} is paused in Airflow: switch it on at {places.airflow()}/dags/{DAG}")
    tasks = airflow.get(f"dags/{DAG}/tasks")["tasks"]
    order = graphlib.TopologicalSorter({task["task_id"]: set[str]() for task in tasks})
    for task in tasks:
        for below in task["downstream_task_ids"]:
            order.add(below, task["task_id"])
    return list(order.static_order())


def _instances(airflow: AirflowClient, name: str) -> list[dict[str, Any]]:
    return airflow.get(f"dags/{DAG}/dagRuns/{name}/taskInstances", limit=100)["task_instances"]


def _notes(name: str) -> list[dict[str, Any]]:
    """How the stages of the pipeline ended so far, from the parent run; none before there is one."""
    with contextlib.suppress(FlyweightError):
        tags = rest.tags_of(evidence.find_parent(name))
        return [json.loads(value) for key, value in tags.items() if key.startswith(f"{rest.TAG}stage.")]
    return []


def _print_evidence(console: Console, name: str, took: str) -> None:
    from pipeline.report import table

    found = evidence.gather(name)
    console.print(table.rich_table(found))
    for stage in found["stages"]:
        if stage["status"] in {"reused", "skipped"}:
            _say(console, f"{stage['stage']} {stage['status']}: {stage['reason']}")
    _say(console, f"\n{name} took {took}. Where to look:")
    for label, where in _addresses(name, found):
        _say(console, f"  {label:16} {where}")


def _addresses(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Report", found["report_url"]
    yield "Airflow", _run_url(name)
    yield "MLflow", found["parent_url"]
    yield "All runs", found["runs_url"]
    yield "Triton", f"gRPC {places.triton_grpc()}, HTTP http://127.0.0.1:{places.port('triton_http')}"
    yield "Airflow's login", f"{USER}, password in {password_file(places.home() / 'airflow')}"
    yield "Stop everything", "make down"


def _print_failures(console: Console, airflow: AirflowClient, name: str) -> int:
    """Say of every task that failed why, in its own words; return the exit code. `report` fails without failing the run."""
    code = 0
    for instance in _instances(airflow, name):
        if instance["state"] == "failed":
            kind, sentence = failure(_log(airflow, name, instance))
            code = 2 if kind == _NO_RETRY else code or 1
            _say(console, f"\n{instance['task_id']} failed: {sentence}")
    return code


def _log(airflow: AirflowClient, name: str, instance: Mapping[str, Any]) -> list[dict[str, Any]]:
    path = f"dags/{DAG}/dagRuns/{name}/taskInstances/{instance['task_id']}/logs/{instance['try_number']}"
    return airflow.get(path)["content"]


def failure(log: list[dict[str, Any]]) -> tuple[str, str]:
    """Return (type, message) of the exception that ended a task, from the events of its log."""
    for event in reversed(log):
        if details := event.get("error_detail"):
            return details[0]["exc_type"], details[0]["exc_value"]
    errors = [event["event"] for event in log if event.get("level") in {"error", "critical"}]
    return "", errors[-1] if errors else "its log holds no error; it may have been killed"


def _run_url(name: str) -> str:
    return f"{places.airflow()}/dags/{DAG}/runs/{name}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
