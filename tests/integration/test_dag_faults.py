"""The DAG in the real Airflow, around a stand-in for the stages: what becomes of a run when they skip, fail, hang or die."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from process_state import has_ended

from pipeline.errors import FlyweightError
from pipeline.graph import STAGES
from pipeline.machine import places
from pipeline.machine.workspace import SOURCE
from pipeline.services import demo
from pipeline.services.airflow_client import AirflowClient

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


STAND_IN = SOURCE / "tests" / "toys" / "stand_in.py"


@pytest.fixture(scope="module")
def airflow(running_stack, dags):
    """Flyweight's home, and the way to talk to an Airflow that knows the DAG `make_proxy` around a stand-in for the stages."""
    text = (SOURCE / "dags" / "make_proxy.py").read_text(encoding="utf-8")
    assert "\ndag = make_proxy()\n" in text
    command = (sys.executable, "-S", str(STAND_IN))
    text = text.replace("\ndag = make_proxy()\n", f"\ndag = make_proxy('stand_in', command={command!r})\n")
    text += """
import approve_operator

approve_operator.evidence_text = lambda pipeline: "the table of " + pipeline  # it has no run in MLflow
"""
    (dags / "stand_in.py").write_text(text, encoding="utf-8")
    client = AirflowClient()
    wait(lambda: client.get("dags/stand_in"))
    return places.home(), client


def wait(answer: Callable[[], Any], seconds: float = 300) -> Any:
    """Return the first true answer; an Airflow that is too busy to answer is asked again."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ConnectionError):
            if found := answer():
                return found
        assert time.monotonic() < end, f"no answer within {seconds} seconds"
        time.sleep(0.3)


class Run:
    """A run of the stand-in DAG."""

    def __init__(self, client: AirflowClient, name: str, approval: bool = False, **stand_in: str) -> None:
        self.client, self.path = client, f"dags/stand_in/dagRuns/{name}"
        client.trigger("stand_in", name, {"recipe": "digits", "stand_in": stand_in, "promote.approval": approval})

    def ended(self) -> tuple[str, dict[str, str]]:
        """Wait for the end; return the run's state and each task's."""
        wait(lambda: self.client.get(self.path)["state"] in {"success", "failed"})
        tasks = self.client.get(f"{self.path}/taskInstances")["task_instances"]
        return self.client.get(self.path)["state"], {task["task_id"]: task["state"] for task in tasks}

    def task(self, name: str) -> dict[str, Any]:
        return self.client.get(f"{self.path}/taskInstances/{name}")

    def until_trained_then_stop(self) -> None:
        """Wait until `train` has done well; what would follow is not run."""
        wait(lambda: self.task("train")["state"] == "success")
        self.client._call("PATCH", f"/api/v2/{self.path}", {"state": "failed"})

    def link(self, name: str) -> str | None:
        return self.client.get(f"{self.path}/taskInstances/{name}/links")["extra_links"].get("MLflow run")


def hanging(home, run: Run) -> list[int]:
    """Wait until `train` hangs; return the pids of the command and of its child."""
    wait((home / "train.pids").exists)
    pids = [int(pid) for pid in (home / "train.pids").read_text().split()]
    (home / "train.pids").unlink()
    assert run.task("train")["state"] == "running"
    return pids


def approve(run: Run) -> None:
    """See the evidence and agree, as a person would."""
    wait(lambda: run.task("approve")["state"] == "awaiting_input")
    details = f"{run.path}/taskInstances/approve/-1/hitlDetails"
    assert run.client.get(details)["body"] == "the table of " + run.path.rpartition("/")[2]
    time.sleep(5)  # Airflow 3.3 fails a task that is answered before it has noted that it waits
    run.client._call("PATCH", f"/api/v2/{details}", {"chosen_options": ["Approve"], "params_input": {}})


@pytest.mark.extra
def test_a_run_is_a_success_although_build_tensorrt_was_skipped_and_a_person_was_asked(airflow):
    home, client = airflow
    run = Run(client, "skips", approval=True, build_tensorrt="skip")
    approve(run)
    state, tasks = run.ended()
    assert state == "success"
    assert tasks.pop("build_tensorrt") == "skipped"
    assert set(tasks.values()) == {"success"}
    assert run.task("approve")["try_number"] == 1
    calls = [json.loads(line) for line in (home / "calls.jsonl").read_text().splitlines()]
    assert [call["stage"] for call in calls] == ["check", *STAGES, "report"]
    assert "engines=build_tensorrt-run" in next(call for call in calls if call["stage"] == "evaluate")["arguments"]


@pytest.mark.extra
def test_a_refused_candidate_fails_the_run_at_once_and_nothing_is_promoted(airflow):
    _, client = airflow
    run = Run(client, "refused", evaluate="user_error")
    state, tasks = run.ended()
    assert state == "failed"
    assert tasks["evaluate"] == "failed"
    assert run.task("evaluate")["try_number"] == 1
    assert {tasks["promote"], tasks["verify_served"]} == {"upstream_failed"}
    assert tasks["report"] == "success"
    assert run.link("evaluate") == "http://127.0.0.1:5999/#/experiments/1/runs/evaluate-run"


@pytest.mark.extra
def test_wrong_settings_stop_the_run_before_anything_is_done(airflow):
    _, client = airflow
    state, tasks = Run(client, "wrong", check="user_error").ended()
    assert state == "failed"
    assert tasks.pop("check") == "failed"
    assert set(tasks.values()) == {"upstream_failed"}


def test_the_form_refuses_what_is_out_of_range(running_stack):
    client = AirflowClient()
    demo._wait_for_dag(client)
    with pytest.raises(FlyweightError, match=r"train.fit.epochs: 0 is less than the minimum of 1"):
        client.trigger(demo.DAG, "refused-by-form", {"train.fit.epochs": 0})


@pytest.mark.extra
def test_a_stage_killed_from_outside_is_tried_again(airflow):
    home, client = airflow
    run = Run(client, "killed", train="hang")
    command, child = hanging(home, run)
    assert run.link("train") == "http://127.0.0.1:5999/#/experiments/1/runs/train-run"
    os.kill(command, signal.SIGKILL)
    run.until_trained_then_stop()
    assert run.task("train")["try_number"] == 2
    assert has_ended(child)


@pytest.mark.extra
@pytest.mark.parametrize("how", ["marked as failed", "the task's process killed"])
def test_no_process_is_left_of_a_task_that_airflow_ends(airflow, how):
    home, client = airflow
    run = Run(client, how.replace(" ", "-").replace("'", ""), train="hang")
    pids = hanging(home, run)
    if how == "marked as failed":
        client._call("PATCH", f"/api/v2/{run.path}/taskInstances/train", {"new_state": "failed"})
        assert run.ended()[0] == "failed"
    else:
        task = next(
            parent
            for parent in psutil.Process(pids[0]).parents()
            if "pipeline.services.supervise" not in parent.cmdline()
        )
        task.kill()
        run.until_trained_then_stop()  # it was tried again
    wait(lambda: all(map(has_ended, pids)), seconds=20)
    assert all(map(has_ended, pids))
