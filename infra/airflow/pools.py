"""Make the pools that the DAG names: `python infra/airflow/pools.py`, with Airflow's database migrated."""

from __future__ import annotations

import subprocess

from pipeline.services.airflow_settings import POOLS

for name, (slots, text) in POOLS.items():
    subprocess.run(["airflow", "pools", "set", name, str(slots), text], check=True)  # noqa: S607
