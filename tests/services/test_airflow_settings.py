"""Airflow on one machine: loopback, a generated login, no examples."""

import json
import stat
from pathlib import Path

from pipeline.graph import STAGES
from pipeline.services.airflow_settings import POOLS, USER, airflow_environment, airflow_password, password_file


def test_nothing_listens_beyond_loopback():
    environment = airflow_environment(Path("/home/x"), 8123)
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8123/execution/"


def test_every_path_is_absolute_and_under_the_home():
    environment = airflow_environment(Path("/home/x"), 8123)
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite:////home/x/airflow.db"
    assert environment["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] == "/home/x/logs"
    assert Path(environment["AIRFLOW__CORE__DAGS_FOLDER"], "make_proxy.py").is_file()


def test_the_environment_holds_no_secret(tmp_path):
    password = airflow_password(tmp_path)
    assert all(password not in value for value in airflow_environment(tmp_path, 8123).values())


def test_the_password_is_generated_once_and_only_its_owner_can_read_it(tmp_path):
    password = airflow_password(tmp_path / "airflow")
    path = password_file(tmp_path / "airflow")
    assert airflow_password(tmp_path / "airflow") == password != airflow_password(tmp_path / "other")
    assert len(password) >= 12
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {USER: password}


def test_every_pool_of_the_graph_is_made():
    assert {stage.pool for stage in STAGES.values()} - {"default_pool"} == set(POOLS)
