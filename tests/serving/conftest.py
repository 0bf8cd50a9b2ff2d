import os
from pathlib import Path

import pytest
from serving_toys import FakeTriton, Registry, Server, artifact

from pipeline.machine.workspace import SOURCE
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.repository import Artifact, write_model
from pipeline.serving.triton.server import install
from pipeline.settings.serving import Serving


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: home, repository and ledger under a temporary directory."""
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(tmp_path / "triton_repo"))
    (tmp_path / "triton_repo").mkdir()
    return tmp_path


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry(home / "registry.json")


@pytest.fixture
def fake(home: Path) -> FakeTriton:
    return FakeTriton(home / "triton_repo", home / "loaded.json")


@pytest.fixture
def served(home: Path, fake: FakeTriton) -> Artifact:
    """What the fake Triton serves as version 1 of the proxy."""
    what = artifact(home, 1.0)
    write_model(home / "triton_repo" / "proxy", what, Serving(instances=1), 1)
    fake.load("proxy", 1.0)
    return what


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the preflight answer in this process: another one takes a second to start, and test_preflight.py has it."""

    def answers(onnx, inputs, threads, timeout):
        return OnnxRunner(onnx, threads)(inputs)

    monkeypatch.setattr("pipeline.serving.promotion.preflight.answers", answers)


@pytest.fixture
def serving() -> Serving:
    return Serving(model="proxy", max_batch_size=8, instances=1)


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory: pytest.TempPathFactory):
    """One real Triton for all tests of a session, with a home and a repository of its own."""
    home = tmp_path_factory.mktemp("triton")
    (home / "triton_repo").mkdir()
    (home / "home").mkdir()
    shared = os.environ.get("FLYWEIGHT_TRITON_HOME")  # by whoever ran before these tests, and gone when they go on
    installed = Path(shared or Path(os.environ.get("FLYWEIGHT_HOME", SOURCE / ".flyweight")) / "triton")
    if shared or installed.is_dir():
        (home / "home" / "triton").symlink_to(installed)
    server = Server(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLYWEIGHT_HOME", str(home / "home"))
        install()
        server.start()
    yield server
    server.stop()


@pytest.fixture
def triton(triton_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The real Triton as this machine's."""
    monkeypatch.setenv("FLYWEIGHT_HOME", str(triton_server.home / "home"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(triton_server.repository))
    monkeypatch.setenv("FLYWEIGHT_TRITON_GRPC", triton_server.url)
    return triton_server


@pytest.fixture
def client(triton: Server):
    """A client of the real Triton."""
    with Client() as client:
        yield client
