"""Files of any interface in a real MLflow registry: they go in, and come back as they were."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import onnx_toys as toys
import pytest
from serving_toys import free_port

from pipeline import tracking
from pipeline.checkpoint import SPEC_FILE, load_spec, sha256
from pipeline.serving.onnx_artifact import from_file

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--no-serve-artifacts"]
    command += ["--default-artifact-root", str(home / "artifacts")]
    server = subprocess.Popen(command, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}, start_new_session=True)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            break
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < end
            time.sleep(0.5)
    yield url
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(60)


@pytest.mark.parametrize("toy", [toys.every_type, toys.without_batch])
def test_a_file_of_any_interface_comes_back_as_it_was(mlflow_server, home, monkeypatch, tmp_path, toy):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    directory = tmp_path / toy.__name__
    model = from_file(toy(directory / "model.onnx"))
    (directory / SPEC_FILE).write_text(model.spec.model_dump_json())
    registry = tracking.registry()
    version = registry.register(toy.__name__, directory, {"sha256": model.sha256})
    (tmp_path / "back").mkdir()
    assert registry.fetch(toy.__name__, version, tmp_path / "back")["sha256"] == model.sha256
    assert sha256(tmp_path / "back" / "model.onnx") == model.sha256
    assert load_spec(tmp_path / "back") == model.spec
