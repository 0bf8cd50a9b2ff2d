"""Who made a run: its process, the commit, and the Airflow run; and whether that process still lives."""

from __future__ import annotations

import os
import socket

import psutil

from pipeline.tracking import fingerprint
from pipeline.tracking.rest import TAG


def tags() -> dict[str, str]:
    """Return the tags that say who makes a run: this process, the commit, and the Airflow run where there is one."""
    me = psutil.Process()
    found = {f"{TAG}process": f"{socket.gethostname()}:{me.pid}:{me.create_time():.2f}"}
    if commit := fingerprint.git_commit():
        found["mlflow.source.git.commit"] = commit
    for key in ("AIRFLOW_RUN_ID", "AIRFLOW_RUN_URL", "AIRFLOW_TRY_NUMBER"):
        if value := os.environ.get(f"FLYWEIGHT_{key}"):
            found[key.lower().replace("_", ".", 1)] = value
    return found


def is_alive(owner: str) -> bool:
    """Whether the process ``host:pid:start time`` lives. One of another machine counts as alive: we cannot know."""
    host, pid, created = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 1.0
    except psutil.NoSuchProcess:
        return False
