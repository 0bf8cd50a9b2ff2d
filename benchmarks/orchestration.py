"""What orchestration costs: the wall time of a DAG run against the time inside the stages' own functions.

    .venv/bin/python benchmarks/orchestration.py [PIPELINE]     (the stack must be up; default: the newest pipeline run)

Every figure is read from the run itself: Airflow's task instances and the seconds that each stage noted in MLflow.
"""

from __future__ import annotations

import sys
from datetime import datetime

from pipeline.services.airflow_client import AirflowClient
from pipeline.services.demo import DAG
from pipeline.tracking import evidence


def main() -> None:
    """Print one line a task, then the ratio and where the rest went."""
    found = evidence.gather(sys.argv[1] if len(sys.argv) > 1 else "latest")
    name = found["pipeline"]
    airflow = AirflowClient()
    run = airflow.get(f"dags/{DAG}/dagRuns/{name}")
    if run is None:
        sys.exit(f"{name} did not run in this Airflow")
    tasks = airflow.get(f"dags/{DAG}/dagRuns/{name}/taskInstances", limit=100)["task_instances"]
    own = {stage["stage"]: stage["seconds"] or 0.0 for stage in found["stages"]}
    wall = _seconds(run["start_date"], run["end_date"])
    ran = sorted((task for task in tasks if task["start_date"]), key=lambda task: task["start_date"])

    print(f"{name}: {run['state']}\n\n{'task':16}{'waited':>8}{'task':>8}{'own':>8}{'start-up':>10}   seconds")
    end, waiting, starting = run["start_date"], 0.0, 0.0
    for task in ran:
        waited = max(0.0, _seconds(end, task["start_date"]))
        took = _seconds(task["start_date"], task["end_date"])
        mine = own.get(task["task_id"], 0.0)
        print(f"{task['task_id']:16}{waited:8.1f}{took:8.1f}{mine:8.1f}{took - mine:10.1f}")
        waiting, starting, end = waiting + waited, starting + took - mine, max(end, task["end_date"])
    total = sum(own.values())
    print(
        f"\nwall {wall:.1f} s, the stages' own time {total:.1f} s: ratio {wall / total:.2f}" if total else "all reused"
    )
    print(
        f"the rest, {wall - total:.1f} s: {starting:.1f} s processes starting (imports, MLflow) and the tasks `check`"
    )
    print(f"and `report`, {waiting:.1f} s between one task's end and the next one's start")


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


if __name__ == "__main__":
    main()
