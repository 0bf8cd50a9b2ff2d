"""The DAG is the graph: nothing more, nothing less, and light."""

import subprocess
import sys
from datetime import timedelta

import pytest
from light import HEAVY

from pipeline.graph import STAGES
from pipeline.machine.workspace import SOURCE


@pytest.fixture(scope="module")
def dag():
    from make_proxy import dag

    return dag


def test_there_is_one_task_per_stage_and_the_order_is_the_graphs(dag):
    assert set(dag.task_ids) == {"check", "approve", "report", *STAGES}
    for stage in STAGES.values():
        above = dag.get_task(stage.name).get_flat_relative_ids(upstream=True)
        assert {*stage.upstream, "check"} <= above, "what a stage needs comes before it, if only by way of others"
    assert dag.get_task("promote").upstream_task_ids == {"approve"}
    assert dag.get_task("approve").upstream_task_ids == {"evaluate"}
    assert dag.get_task("report").upstream_task_ids == {"check", "verify_served"}


def test_no_edge_is_implied_by_others(dag):
    """But for the one by which a teardown knows its setup."""
    for task in dag.tasks:
        for name in task.upstream_task_ids:
            others = task.upstream_task_ids - {name}
            implied = any(name in dag.get_task(other).get_flat_relative_ids(upstream=True) for other in others)
            assert implied == ((name, task.task_id) == ("check", "report")), f"{name} -> {task.task_id}"


def test_the_stages_stand_in_five_labelled_groups_and_their_ids_stay_short(dag):
    groups = dag.task_group.get_task_group_dict()
    found = {name: list(group.children) for name, group in groups.items() if name}
    assert found == {
        "data": ["prepare_data", "validate"],
        "teach": ["train", "distill"],
        "compress": ["prune", "quantize", "export_onnx", "build_tensorrt"],
        "prove": ["evaluate"],
        "serve": ["promote", "verify_served", "approve"],
    }
    assert [groups[name].group_display_name for name in found] == ["Data", "Teach", "Compress", "Prove", "Serve"]
    assert all(groups[name].tooltip for name in found)


def test_the_report_comes_after_every_stage_and_whatever_became_of_them(dag):
    report = dag.get_task("report")
    assert report.get_flat_relative_ids(upstream=True) == {"check", "approve", *STAGES}
    assert report.is_teardown
    assert report.on_failure_fail_dagrun is False


def test_only_what_follows_build_tensorrt_tolerates_a_skip(dag):
    rules = {task.task_id: task.trigger_rule.value for task in dag.tasks if task.task_id != "report"}
    assert rules.pop("evaluate") == "none_failed"
    assert set(rules.values()) == {"all_success"}


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_a_task_has_its_stages_pool_retries_timeout_and_help(dag, stage):
    task = dag.get_task(stage.name)
    assert (task.pool, task.retries, task.doc_md) == (stage.pool, stage.retries, stage.help)
    assert task.execution_timeout == timedelta(minutes=stage.timeout_minutes)
    assert task.inputs == dict(stage.inputs)


def test_wrong_settings_fail_at_once(dag):
    assert dag.get_task("check").retries == 0


def test_a_run_is_only_ever_started_by_somebody(dag):
    assert (dag.schedule, dag.catchup, dag.max_active_runs, dag.is_paused_upon_creation) == (None, False, 1, False)
    assert dag.fail_fast is False
    assert "MLflow run" in dag.doc_md


def test_the_form_leaves_everything_as_the_recipe_says(dag):
    values = dag.params.validate()
    assert values.pop("recipe") == "demo"
    assert values.pop("force") is False
    assert set(values.values()) == {None}


def test_no_task_holds_a_copy_of_the_forms_parameters(dag):
    assert [task.task_id for task in dag.tasks if task.params] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", "digits"),
        ("train.fit.epochs", 3),
        ("train.fit.optimizer", "adamw"),
        ("train.fit.horizontal_flip", "false"),
        ("train.fit.horizontal_flip", False),
        ("distributed.nproc", "auto"),
        ("distributed.nproc", 2),
        ("train.model", {"name": "resnet", "width": 8}),
        ("evaluate.concurrency", [1, 2]),
        ("quantize.targets", ["cpu"]),
        ("budget.p99_ms", None),
    ],
)
def test_the_form_takes(dag, name, value):
    assert dag.params.get_param(name).__copy__().resolve(value) == value


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("recipe", "dmo", "'dmo' is not one of"),
        ("recipe", None, "None is not of type 'string'"),
        ("train.fit.epochs", 0, "less than the minimum of 1"),
        ("train.fit.epochs", "many", "is not of type 'integer', 'null'"),
        ("train.fit.optimizer", "adam", "'adam' is not one of"),
        ("train.fit.horizontal_flip", "ture", "does not match"),
        ("budget.accuracy_drop", 1.5, "greater than the maximum of 1"),
        ("evaluate.concurrency", [0], "less than the minimum of 1"),
    ],
)
def test_the_form_refuses(exceptions, dag, name, value, text):
    with pytest.raises(exceptions.ParamValidationError, match=text):
        dag.params.get_param(name).__copy__().resolve(value)


def test_the_dag_file_is_light():
    """Heavy packages would make each parse of the file, and each task, seconds longer."""
    code = f"""
import sys, time
from airflow.sdk import DAG, BaseOperator, BaseOperatorLink, Param, TriggerRule
from airflow.sdk.exceptions import AirflowFailException
before = time.process_time()
import make_proxy
print(time.process_time() - before, *(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE / "dags", capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 1.0  # processor time, which other processes do not change; a tenth of it is usual
