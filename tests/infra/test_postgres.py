"""The stores of the production layout on a real PostgreSQL: databases.sh, the secrets, Airflow and MLflow on top.

Needs PostgreSQL's server programs (Debian: apt-get install postgresql), and no root: it runs as an ordinary user.
"""

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.settings import reader

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path("/nonexistent/initdb")).parent
USER = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (PROGRAMS / "initdb").exists(), reason="no PostgreSQL server on this machine"),
]


@pytest.fixture(scope="module")
def postgres():
    """(directory of secrets, port) of a server that databases.sh has set up. It stops with the test."""
    base = Path(tempfile.mkdtemp(prefix="flyweight-postgres-", dir="/tmp"))
    secrets = base / "secrets"
    runpy.run_path(str(ROOT / "infra" / "make_secrets.py"))["make_secrets"](secrets)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if USER:
        for path in (base, secrets, *secrets.iterdir()):
            shutil.chown(path, "nobody", "nogroup")
    data = base / "data"

    def run(*command, **extra):
        subprocess.run([str(part) for part in command], check=True, capture_output=True, cwd=base, **USER, **extra)

    run(PROGRAMS / "initdb", "-D", data, "-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256")
    options = f"-p {port} -k {base} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run(  # not captured: the server would hold the pipes open
        [PROGRAMS / "pg_ctl", "-D", data, "-w", "-l", base / "log", "-o", options, "start"],
        check=True, stdout=subprocess.DEVNULL, cwd=base, **USER,
    )  # fmt: skip
    try:
        psql = {"PGHOST": str(base), "PGPORT": str(port), "SECRETS": str(secrets), "PATH": f"{PROGRAMS}:/usr/bin:/bin"}
        run("/bin/sh", ROOT / "infra/postgres/databases.sh", env=psql)
        yield secrets, port
    finally:
        run(PROGRAMS / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(base)


def uri(postgres, name):
    secrets, port = postgres
    return (secrets / f"{name}_database_uri").read_text().replace("postgres:5432", f"127.0.0.1:{port}")


@pytest.mark.parametrize(("name", "other"), [("airflow", "mlflow"), ("mlflow", "airflow")])
def test_each_user_has_its_own_database_and_may_not_enter_the_other(postgres, name, other):
    import psycopg2

    address = uri(postgres, name).replace("+psycopg2", "")
    connection = psycopg2.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (n int)")
        cursor.execute("DROP TABLE t")
    connection.close()
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(re.sub(rf"/{name}$", f"/{other}", address))
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(re.sub(r":\w{64}@", ":wrong@", address))


@pytest.mark.extra
def test_airflow_migrates_with_the_environment_of_the_compose_file(postgres, tmp_path):
    compose = reader.read((ROOT / "docker-compose.yml").read_text(encoding="utf-8"), "docker-compose.yml")
    (tmp_path / "uri").write_text(uri(postgres, "airflow"))
    environment = {
        key: value.replace("/run/secrets/airflow_database_uri", str(tmp_path / "uri")).replace(
            "/run/secrets", str(postgres[0])
        )
        for key, value in compose["services"]["airflow-scheduler"]["environment"].items()
        if key.startswith("AIRFLOW__") and "${" not in value
    }
    environment |= {"AIRFLOW_HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}

    def airflow(*command):
        done = subprocess.run(["airflow", *command], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    airflow("db", "migrate")
    for option in ("core fernet_key", "api secret_key", "api_auth jwt_secret"):
        value = airflow("config", "get-value", *option.split()).strip().splitlines()[-1]
        assert value == (postgres[0] / f"airflow_{option.split()[1]}").read_text()


@pytest.mark.extra
def test_mlflow_makes_its_tables(postgres):
    import psycopg2

    command = [str(Path(sys.executable).with_name("mlflow")), "db", "upgrade", uri(postgres, "mlflow")]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    with (
        psycopg2.connect(uri(postgres, "mlflow").replace("+psycopg2", "")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT count(*) FROM information_schema.tables WHERE table_name = 'registered_models'")
        assert cursor.fetchone() == (1,)
