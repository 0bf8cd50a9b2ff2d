"""A real MLflow server on a free port, for all tests of this folder that a process runs."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import mlflow_store
import pytest


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    home = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", mlflow_store.fresh(home / "mlflow.db"), "--no-serve-artifacts"]
    command += ["--default-artifact-root", str(home / "artifacts")]
    server = subprocess.Popen(
        command,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.time() + 300
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2)
            break
        except OSError:
            assert server.poll() is None and time.time() < deadline, "MLflow did not start"
            time.sleep(0.5)
    yield url
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)
