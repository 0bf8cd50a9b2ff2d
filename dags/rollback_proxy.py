"""Serve the version before the present one again: at once while it is still loaded, and without losing a request.

Press *Trigger*. What happened and why is told by `flyweight history`; docs/promotion.md says when to roll back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param
from stage_operator import COMMAND, StageOperator


def rollback_proxy(dag_id: str = "rollback_proxy", command: Sequence[str] = COMMAND) -> DAG:
    """Return the DAG of one task. `command` is Flyweight's command line; the tests put a stand-in there."""
    with DAG(
        dag_id,
        dag_display_name="Roll the proxy back",
        description="The version before the champion serves again",
        doc_md=__doc__,
        tags=["flyweight", "serving"],
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        params={"model": Param("proxy", type="string", pattern="^[a-z][a-z0-9_]{0,63}$", title="Model name in Triton")},
    ) as dag:
        StageOperator(
            task_id="rollback",
            stage="rollback",
            arguments=("--model", "{{ params.model }}"),
            doc_md="Roll back, then move the registry's alias.",
            retries=0,  # a second try would go back one version more
            execution_timeout=timedelta(minutes=5),
            command=command,
        )
    return dag


dag = rollback_proxy()
