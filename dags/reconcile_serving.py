"""Every hour: does Triton serve what the ledger, the disk and the registry say? Repair what can be, alarm for the rest.

A failed run says in its log and its error what a person must do, such as restarting Triton. While a promotion is under way
there is nothing to compare, and the run passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param
from stage_operator import COMMAND, StageOperator


def reconcile_serving(dag_id: str = "reconcile_serving", command: Sequence[str] = COMMAND) -> DAG:
    """Return the DAG of one task. `command` is Flyweight's command line; the tests put a stand-in there."""
    with DAG(
        dag_id,
        dag_display_name="Reconcile serving",
        description="Ledger, disk, Triton and registry must agree",
        doc_md=__doc__,
        tags=["flyweight", "serving"],
        schedule="@hourly",
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        params={"model": Param("proxy", type="string", pattern="^[a-z][a-z0-9_]{0,63}$", title="Model name in Triton")},
    ) as dag:
        StageOperator(
            task_id="reconcile",
            stage="reconcile",
            arguments=("--set", "serving.model={{ params.model }}"),
            doc_md="Compare, repair, report.",
            retries=2,
            retry_delay=timedelta(minutes=1),
            execution_timeout=timedelta(minutes=30),
            command=command,
        )
    return dag


dag = reconcile_serving()
