"""`flyweight demo`: what the person who waits sees, and the exit code, for every end that a run can have."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import FlyweightError
from pipeline.machine import places
from pipeline.progress.board import Board, LiveTable, PlainLog, StageView, duration
from pipeline.progress.follow import EventFile
from pipeline.services import demo

TASKS = [
    {"task_id": "report", "downstream_task_ids": []},
    {"task_id": "train", "downstream_task_ids": ["report"]},
    {"task_id": "check", "downstream_task_ids": ["train"]},
]
USER_ERROR = {"exc_type": "AirflowFailException", "exc_value": "train.fit.epoch is no setting; did you mean 'epochs'?"}
OTHER_ERROR = {"exc_type": "RuntimeError", "exc_value": "train was ended by SIGKILL. "}


class FakeAirflow:
    """Answers as Airflow's REST interface does; each look at the run shows the next of `steps` (task -> state)."""

    def __init__(
        self, steps: list[dict[str, str | None]], end: str = "success", error: Mapping[str, Any] | None = None
    ):
        self.steps, self.end, self.error = steps, end, error
        self.looks = 0
        self.triggered: tuple[str, dict[str, Any]] | None = None
        self.dag: dict[str, Any] | None = {"is_stale": False, "is_paused": False}
        self.import_errors: list[dict[str, str]] = []

    def trigger(self, dag: str, run_id: str, conf: dict[str, Any]) -> None:
        self.triggered = (run_id, conf)

    def get(self, path: str, **query: object) -> Any:
        if path == "dags/make_proxy":
            return self.dag
        if path == "importErrors":
            return {"import_errors": self.import_errors}
        if path.endswith("/tasks"):
            return {"tasks": TASKS}
        if path.endswith("/taskInstances"):
            step = self.steps[min(self.looks, len(self.steps)) - 1]
            return {"task_instances": [_instance(task, state) for task, state in step.items()]}
        if "/logs/" in path:
            ended = {"event": "Task failed with exception", "level": "error", "error_detail": [self.error]}
            return {"content": [{"event": "::group::"}, ended, {"event": "bye", "level": "info"}]}
        self.looks += 1
        return {"state": self.end if self.looks >= len(self.steps) else "running"}


def _instance(task: str, state: str | None) -> dict[str, Any]:
    return {"task_id": task, "state": state, "duration": 65.0 if state == "success" else None, "try_number": 1}


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(demo, "_notes", lambda name: [])
    return tmp_path


def _run(airflow: FakeAirflow, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> tuple[int, str]:
    monkeypatch.setattr(demo, "AirflowClient", lambda: airflow)
    out = io.StringIO()
    code = demo.run("digits", {"train.fit.epochs": 3}, console=Console(file=out, width=200), **arguments)
    return code, out.getvalue()


def test_a_run_that_succeeds_ends_with_the_table_and_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    airflow = FakeAirflow(
        [
            {"check": "running", "train": None, "report": None},
            {"check": "success", "train": "running", "report": None},
            {"check": "success", "train": "success", "report": "success"},
        ]
    )
    reused = {"stage": "train", "status": "reused", "reason": "run abc had the same settings, inputs and code"}
    found = {
        "evaluation": None,
        "stages": [reused],
        "report_url": "http://report",
        "parent_url": "http://parent",
        "runs_url": "http://runs",
    }
    monkeypatch.setattr(demo, "_notes", lambda name: [reused])
    monkeypatch.setattr(demo.evidence, "gather", lambda name: found)

    code, text = _run(airflow, monkeypatch)

    assert code == 0
    assert airflow.triggered is not None
    name, conf = airflow.triggered
    assert name.startswith("digits-")
    assert conf == {"recipe": "digits", "train.fit.epochs": 3}
    lines = [line.partition("] ")[2] for line in text.splitlines() if line.startswith("[")]
    assert lines == [
        "check running",
        "check done in 1 min 05 s",
        "train running",
        "train reused in 1 min 05 s run abc had the same settings, inputs and code",
        "report done in 1 min 05 s",
    ]
    assert "train reused: run abc had the same settings, inputs and code" in text
    for address in ("http://report", "http://parent", f"/dags/make_proxy/runs/{name}", "passwords.json", "make down"):
        assert address in text


def test_force_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    airflow = FakeAirflow([{"check": "failed"}], end="failed", error=OTHER_ERROR)
    _run(airflow, monkeypatch, force=True)
    assert airflow.triggered is not None
    assert airflow.triggered[1]["force"] is True


@pytest.mark.parametrize(("error", "expected"), [(USER_ERROR, 2), (OTHER_ERROR, 1)])
def test_a_failed_run_ends_with_the_sentence_of_the_task(
    error: Mapping[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, str | None]] = [{"check": "success", "train": "failed", "report": "upstream_failed"}]
    code, text = _run(FakeAirflow(steps, end="failed", error=error), monkeypatch)
    assert code == expected
    assert f"train failed: {error['exc_value']}" in text
    assert "report not run" in text
    assert "check failed" not in text


def test_a_report_that_fails_does_not_hide_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, str | None]] = [{"check": "success", "train": "success", "report": "failed"}]
    found = {
        "evaluation": None,
        "stages": [],
        "report_url": "http://report",
        "parent_url": "http://parent",
        "runs_url": "http://runs",
    }
    monkeypatch.setattr(demo.evidence, "gather", lambda name: found)
    code, text = _run(FakeAirflow(steps, error=OTHER_ERROR), monkeypatch)
    assert code == 1
    assert "http://parent" in text
    assert f"report failed: {OTHER_ERROR['exc_value']}" in text


def test_ctrl_c_leaves_the_run_alone_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "follow", interrupt)
    airflow = FakeAirflow([{}])
    code, text = _run(airflow, monkeypatch)
    assert code == 1
    assert airflow.triggered is not None
    assert f"{airflow.triggered[0]} goes on without this display" in text
    assert "`flyweight down` stops everything" in text


def test_a_dag_that_cannot_be_imported_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    airflow = FakeAirflow([{}])
    airflow.dag = None
    airflow.import_errors = [{"filename": "make_proxy.py", "stack_trace": "SyntaxError: invalid syntax"}]
    with pytest.raises(FlyweightError, match=r"Airflow cannot import make_proxy.py:\nSyntaxError: invalid syntax"):
        _run(airflow, monkeypatch)


def test_a_dag_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_DAG_DEADLINE_SECONDS", 0.0)
    airflow = FakeAirflow([{}])
    airflow.dag = None
    with pytest.raises(ConnectionError, match=r"has not found the DAG make_proxy within 0 s; see .*dag-processor\.log"):
        _run(airflow, monkeypatch)


def test_a_paused_dag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    airflow = FakeAirflow([{}])
    airflow.dag = {"is_stale": False, "is_paused": True}
    with pytest.raises(FlyweightError, match=r"is paused in Airflow: switch it on at http"):
        _run(airflow, monkeypatch)


def test_a_log_without_an_exception_still_says_something() -> None:
    assert demo.failure([{"event": "out of memory", "level": "error"}, {"event": "bye"}]) == ("", "out of memory")
    assert demo.failure([]) == ("", "its log holds no error; it may have been killed")


def _event(stage: str, done: float, when: float, what: str = "epochs", **metrics: float) -> dict[str, Any]:
    return {"stage": stage, "time": when, "what": what, "done": done, "total": 10, "step": 1, "metrics": metrics}


def test_a_running_stage_shows_per_cent_eta_and_its_last_metrics() -> None:
    board = Board.of("run", ["train"])
    board.tasks([_instance("train", "running")])
    board.events([_event("train", 1, 100.0), _event("train", 4, 130.0, loss=0.25, accuracy=0.912345)])
    assert board.stages["train"].line() == "train running 40 % ETA 1 min 00 s epochs, loss 0.25, accuracy 0.9123"


def test_the_eta_belongs_to_the_present_piece_of_work() -> None:
    board = Board.of("run", ["train"])
    board.tasks([_instance("train", "running")])
    board.events([_event("train", 9, 100.0), _event("train", 2, 200.0, what="recovery")])
    assert board.stages["train"].line() == "train running 20 % recovery"


def test_a_retry_forgets_what_the_first_attempt_said() -> None:
    board = Board.of("run", ["train"])
    board.tasks([_instance("train", "running")])
    board.events([_event("train", 9, 100.0)])
    board.tasks([_instance("train", "up_for_retry")])
    assert board.stages["train"].line() == "train to be retried"
    board.tasks([_instance("train", "running")])
    assert board.stages["train"].line() == "train running"


def test_progress_is_read_line_by_line_from_where_it_was_left(quiet: Path) -> None:
    file = quiet / "run" / "progress" / "manual__2026-11-21T10_00_00.5_00_00.jsonl"
    progress = EventFile(places.progress_file("manual__2026-11-21T10:00:00.5+00:00"))
    assert progress.read() == []
    file.parent.mkdir(parents=True)
    first, second = _event("train", 1, 1.0), _event("train", 2, 2.0)
    file.write_text(json.dumps(first) + "\n" + json.dumps(second)[:9])
    assert progress.read() == [first]
    with file.open("a") as out:
        out.write(json.dumps(second)[9:] + "\n")
    assert progress.read() == [second]


def test_a_terminal_gets_a_table() -> None:
    board = Board.of("run", ["train", "prune"])
    board.tasks([_instance("train", "running"), _instance("prune", None)])
    board.events([_event("train", 5, 1.0, loss=0.5)])
    out = io.StringIO()
    with LiveTable(Console(file=out, width=100, force_terminal=True, color_system=None)) as display:
        display.show(board)
    text = out.getvalue()
    assert "train   running   50 %" in text
    assert "epochs, loss 0.5" in text
    assert "prune   waiting" in text


def test_a_log_gets_a_line_every_ten_seconds_while_a_stage_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipeline.progress.board.time.monotonic", lambda: now[0])
    board = Board("run", {"train": StageView("train")}, begun=0.0)
    out = io.StringIO()
    log = PlainLog(Console(file=out, width=100))
    board.tasks([_instance("train", "running")])
    for second in range(25):
        now[0] = float(second)
        board.events([_event("train", second / 3, 100.0 + second)])
        log.show(board)
    assert out.getvalue().splitlines() == [
        "[     0 s] train running 0 % epochs",
        "[    10 s] train running 33 % ETA 20 s epochs",
        "[    20 s] train running 67 % ETA 10 s epochs",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (81.4, "1 min 21 s"), (7380.0, "2 h 03 min")]
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
