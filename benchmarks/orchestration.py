"""What orchestration costs: the wall time of a DAG run against the time inside the stages' own functions.

    .venv/bin/python benchmarks/orchestration.py [PIPELINE]     (the stack must be up; default: the newest pipeline run)

Every figure is read from the run itself: Airflow's task instances and the seconds that each stage noted in MLflow.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.services.airflow_client import AirflowClient
from pipeline.services.demo import DAG
from pipeline.tracking import evidence, rest


def main() -> None:
    """Print one line per task, then the ratio and where the rest went."""
    found = evidence.gather(sys.argv[1] if len(sys.argv) > 1 else "latest")
    name = found["pipeline"]
    airflow = AirflowClient()
    run = airflow.get(f"dags/{DAG}/dagRuns/{name}")
    if run is None:
        sys.exit(f"{name} did not run in this Airflow")
    tasks = airflow.get(f"dags/{DAG}/dagRuns/{name}/taskInstances", limit=100)["task_instances"]
    stages = {stage["stage"]: stage for stage in found["stages"]}
    parts = [_parts(task, stages.get(task["task_id"])) for task in tasks if task["start_date"]]
    parts.sort(key=lambda part: part.begun)
    wall, total = _seconds(run["start_date"], run["end_date"]), sum(part.own for part in parts)

    print(
        f"{name}: {run['state']}\n\n{'task':16}{'waited':>9}{'start-up':>9}{'own':>9}{'records':>9}{'end':>9}   seconds"
    )
    end, waiting = _time(run["start_date"]), 0.0
    for part in parts:
        waited = max(0.0, part.begun - end)
        print(f"{part.task:16}{waited:9.1f}{part.starting:9.1f}{part.own:9.1f}{part.recording:9.1f}{part.ending:9.1f}")
        waiting, end = waiting + waited, max(end, part.ended)
    last = max(0.0, _time(run["end_date"]) - end)
    print(f"{'(end of run)':16}{last:9.1f}\n")
    print(
        f"wall {wall:.1f} s, the stages' own time {total:.1f} s: {f'ratio {wall / total:.2f}' if total else 'all reused'}"
    )
    print(f"the rest, {wall - total:.1f} s:")
    for seconds, what in (
        (waiting + last, "between one task's end and the next one's start: Airflow's scheduler"),
        (
            sum(part.starting for part in parts),
            "from a task's start until its run in MLflow begins: Airflow's task, Python, the fingerprint",
        ),
        (
            sum(part.recording for part in parts),
            "the imports of the stage itself (PyTorch, Great Expectations), its inputs, and MLflow keeping what it left",
        ),
        (
            sum(part.ending for part in parts),
            "from the end of the MLflow run to that of the task; `check` and `report` as a whole",
        ),
    ):
        print(f"{seconds:8.1f} s  {what}")


@dataclass(frozen=True)
class _Parts:
    """Where the time of one task went, in seconds."""

    task: str
    begun: float
    ended: float
    starting: float
    own: float
    recording: float
    ending: float


def _parts(task: dict[str, Any], stage: dict[str, Any] | None) -> _Parts:
    """The parts of a task; one without an MLflow run of its own (`check`, what is reused) only starts or ends."""
    begun, ended = _time(task["start_date"]), _time(task["end_date"])
    if stage is None or stage["status"] != "finished":
        return _Parts(task["task_id"], begun, ended, 0.0, 0.0, 0.0, ended - begun)
    info = rest.get_run(stage["run_id"])["info"]
    opened, closed, own = int(info["start_time"]) / 1000, int(info["end_time"]) / 1000, stage["seconds"] or 0.0
    return _Parts(task["task_id"], begun, ended, opened - begun, own, closed - opened - own, ended - closed)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _seconds(begin: str, end: str) -> float:
    return _time(end) - _time(begin)


if __name__ == "__main__":
    main()
