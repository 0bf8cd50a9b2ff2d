"""The DAGs around what is served, and the approval before it: light, and they ask Flyweight's command line."""

import json
import subprocess
import sys
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from light import HEAVY

from pipeline.machine.workspace import SOURCE


@pytest.fixture(scope="module")
def dags():
    import reconcile_serving
    import rollback_proxy

    return {"rollback": rollback_proxy.dag, "reconcile": reconcile_serving.dag}


def test_each_is_one_task(dags):
    assert [dag.task_ids for dag in dags.values()] == [["rollback"], ["reconcile"]]
    assert [dag.dag_id for dag in dags.values()] == ["rollback_proxy", "reconcile_serving"]


def test_a_rollback_is_somebodys_and_reconciling_is_scheduled(dags):
    assert dags["rollback"].schedule is None
    assert dags["reconcile"].schedule == "@hourly"
    for dag in dags.values():
        assert (dag.catchup, dag.max_active_runs, dag.is_paused_upon_creation) == (False, 1, False)
        assert dag.get_task(dag.task_ids[0]).execution_timeout >= timedelta(minutes=5)
    assert dags["rollback"].get_task("rollback").retries == 0, "a second try would go back one version more"


@pytest.mark.parametrize(
    ("name", "line"),
    [("rollback", ["--model", "other"]), ("reconcile", ["--set", "serving.model=other"])],
)
def test_the_command_gets_the_model_of_the_form(dags, operator, context, tmp_path, name, line):
    task = dags[name].get_task(name)
    task.render_template_fields({"params": {"model": "other"}})
    assert list(task.arguments) == line
    assert operator(name, arguments=line).execute(context(recipe="digits")) is None
    (call,) = [json.loads(text) for text in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert (call["stage"], call["arguments"]) == (name, line)


def test_a_model_that_cannot_be_one_is_refused(exceptions, dags):
    with pytest.raises(exceptions.ParamValidationError, match="does not match"):
        dags["rollback"].params.get_param("model").__copy__().resolve("../etc")


def test_what_a_person_must_do_is_the_tasks_error(exceptions, operator, context):
    with pytest.raises(exceptions.AirflowFailException, match=r"^train.fit has no 'epoch'"):
        operator("reconcile", arguments=["--set", 'stand_in={"reconcile": "user_error"}']).execute(context())


@pytest.mark.extra
def test_the_files_are_light():
    code = f"""
import sys, time
from airflow.sdk import DAG, BaseOperator, BaseOperatorLink, Param, TriggerRule
from airflow.sdk.exceptions import AirflowFailException
before = time.process_time()
import rollback_proxy, reconcile_serving, approve_operator
print(time.process_time() - before, *(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE / "dags", capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 1.0  # processor time


@pytest.fixture
def approve(monkeypatch):
    """The approval task with its two ways out of the process replaced; what it would have shown is in `shown`."""
    import approve_operator
    from airflow.sdk.bases.operator import ExecutorSafeguard

    shown = {}
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    monkeypatch.setattr(approve_operator, "evidence_text", lambda pipeline: f"the table of {pipeline}")
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **what: shown.update(what)
    )
    task = approve_operator.ApproveOperator(task_id="approve")

    def run(**conf):
        instance = SimpleNamespace(id="7")
        return task.execute({"dag_run": SimpleNamespace(conf=conf), "run_id": "run-7", "task_instance": instance})

    run.task, run.shown = task, shown
    return run


@pytest.mark.parametrize("conf", [{}, {"recipe": "digits", "stand_in": {}}, {"promote.approval": "false"}])
def test_nobody_is_asked_unless_the_settings_say_so(approve, conf):
    assert approve(**conf) is None
    assert approve.shown == {}


@pytest.mark.parametrize("value", [True, "true"])
def test_a_person_sees_the_evidence_and_the_task_waits(exceptions, approve, value):
    with pytest.raises(exceptions.TaskAwaitingInput):
        approve(**{"recipe": "digits", "promote.approval": value})
    assert approve.shown["body"] == "the table of run-7"
    assert approve.shown["options"] == ["Approve", "Reject"]


def answer(option):
    return {
        "chosen_options": [option],
        "params_input": {},
        "responded_at": datetime(2026, 1, 1),
        "responded_by_user": {"id": "1", "name": "Ada"},
    }


def test_approved_it_goes_on_and_rejected_it_fails_for_good(exceptions, approve):
    assert approve.task.execute_complete({}, answer("Approve"))["chosen_options"] == ["Approve"]
    with pytest.raises(
        exceptions.AirflowFailException, match=r"^Ada rejected the promotion; what served before serves on$"
    ):
        approve.task.execute_complete({}, answer("Reject"))
