"""From data to a served proxy: validate, train the teacher, distil, prune, quantize, export, measure, promote, verify.

Press *Trigger*, choose a recipe, change what you like; what is left empty is as the recipe says. Every stage is a task with
an **MLflow run** button. A stage whose settings, inputs and code have not changed reuses the run that did the same and says
so. A task that the user must repair (wrong settings, damaged data, no candidate inside the budget) fails at once with a
sentence that says what to do; anything else is tried again and goes on from its last checkpoint.

The same graph without Airflow: `flyweight all --recipe digits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param, TaskGroup, TriggerRule
from approve_operator import APPROVE, ApproveOperator
from stage_operator import CHECK, COMMAND, REPORT, StageOperator

from pipeline.graph import GROUPS, STAGES, Stage, before
from pipeline.settings.form import params


def make_proxy(dag_id: str = "make_proxy", command: Sequence[str] = COMMAND) -> DAG:
    """Return the DAG: `check`, then one task per stage of `pipeline.graph` in its groups, then `report` whatever came of them.

    Before `promote` comes `approve`, which waits for a person where the settings ask for it. Edges that others imply are
    left out.

    `command` is Flyweight's command line; the tests put a stand-in there.
    """
    with DAG(
        dag_id,
        dag_display_name="Make a proxy",
        description="From data to a served proxy",
        doc_md=__doc__,
        tags=["flyweight"],
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        default_args={"owner": "flyweight", "retry_delay": timedelta(seconds=10)},
    ) as dag:
        check = StageOperator(
            task_id=CHECK,
            stage=CHECK,
            doc_md="Refuse settings that do not hold, in seconds and before anything is done.",
            execution_timeout=timedelta(minutes=2),
            command=command,
        )
        report = StageOperator(
            task_id=REPORT,
            stage=REPORT,
            doc_md="Write the evidence page and close the pipeline's MLflow run, whatever came of the stages.",
            retries=1,
            execution_timeout=timedelta(minutes=10),
            command=command,
        )
        groups = {
            name: TaskGroup(name, group_display_name=name.capitalize(), tooltip=text, prefix_group_id=False)
            for name, text in GROUPS.items()
        }
        tasks = {stage.name: _task(stage, groups[stage.group], command) for stage in STAGES.values()}
        approve = ApproveOperator(
            task_id=APPROVE,
            doc_md="Wait for a person's word, if promote.approval asks for it.",
            task_group=groups[STAGES["promote"].group],
        )
        approve.set_downstream(tasks["promote"])
        for name, task in tasks.items():
            first = approve if name == "promote" else task
            first.set_upstream([tasks[one] for one in before(name)] or check)
        report.set_upstream([task for task in tasks.values() if not task.downstream_list])
        report.as_teardown(
            setups=check
        )  # the one implied edge that stays: by it a refused `check` stops the report too
    # After the tasks: each takes a copy of what the DAG has by then, and Airflow keeps, reads and checks them all.
    dag.params.update({name: Param(**schema) for name, schema in params().items()})
    return dag


def _task(stage: Stage, group: TaskGroup, command: Sequence[str]) -> StageOperator:
    tolerant = any(STAGES[name].may_skip for name in stage.upstream)
    return StageOperator(
        task_id=stage.name,
        task_group=group,
        stage=stage.name,
        inputs=stage.inputs,
        doc_md=stage.help,
        pool=stage.pool,
        retries=stage.retries,
        execution_timeout=timedelta(minutes=stage.timeout_minutes),
        trigger_rule=TriggerRule.NONE_FAILED if tolerant else TriggerRule.ALL_SUCCESS,
        command=command,
    )


dag = make_proxy()
