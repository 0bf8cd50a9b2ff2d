"""infra/make_secrets.py: random, private, never twice."""

import base64
import json
import runpy
import stat
from pathlib import Path

make_secrets = runpy.run_path(str(Path(__file__).parents[2] / "infra" / "make_secrets.py"))["make_secrets"]


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_nothing_is_the_same_on_two_machines(tmp_path):
    make_secrets(tmp_path / "one")
    make_secrets(tmp_path / "two")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert not set(one.values()) & set(two.values())


def test_a_second_call_keeps_every_secret_and_fills_what_is_missing(tmp_path):
    directory = tmp_path / "secrets"
    made = make_secrets(directory)
    before = contents(directory)
    assert sorted(made) == sorted(before)
    assert make_secrets(directory) == []
    (directory / "mlflow_database_uri").unlink()
    assert make_secrets(directory) == ["mlflow_database_uri"]
    assert contents(directory) == before


def test_only_the_owner_may_enter_the_directory_and_nobody_may_write(tmp_path):
    make_secrets(tmp_path / "secrets")
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()} == {0o444}


def test_an_open_directory_is_closed(tmp_path):
    (tmp_path / "secrets").mkdir(mode=0o755)
    make_secrets(tmp_path / "secrets")
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_each_has_the_form_its_reader_wants(tmp_path):
    make_secrets(tmp_path)
    found = contents(tmp_path)
    assert len(base64.urlsafe_b64decode(found["airflow_fernet_key"])) == 32
    assert len(json.loads(found["airflow_passwords"])["admin"]) >= 20
    for name in ("airflow", "mlflow"):
        password = found[f"{name}_database_password"]
        assert len(password) == 64 and password.isalnum()
        assert found[f"{name}_database_uri"] == f"postgresql+psycopg2://{name}:{password}@postgres:5432/{name}"
