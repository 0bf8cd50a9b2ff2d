"""`flyweight doctor`: what is wrong is named with its fix, and looking stays quick and light."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.services import doctor, services


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    return tmp_path


def _found(name: str) -> doctor.Check:
    return next(check for check in doctor.checks() if check.name == name)


def test_every_part_is_looked_at_and_every_problem_and_note_comes_with_a_fix() -> None:
    checks = doctor.checks()
    assert [check.name for check in checks] == [
        "Python", "packages", "disk", "memory", "CPU", "GPU", "TensorRT", "Triton server",
        "MLflow port", "Triton port", "Airflow port", "MLflow", "Triton", "Airflow", "secrets", "data", "reuse", "browser",
    ]  # fmt: skip
    assert [check.name for check in checks if check.ok is not True and not check.fix] == []
    assert [check.name for check in checks if not check.found] == []


def test_this_python_is_right_and_named() -> None:
    assert _found("Python").ok is True
    assert _found("Python").found == f"{platform.python_version()} in {sys.prefix}"


def test_another_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 14, 0))
    found = next(doctor._python())
    assert (found.ok, found.fix) == (False, "make the environment with Python 3.11, 3.12 or 3.13: `make setup`")


def test_what_is_prepared_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWEIGHT_DATA", str(home))
    assert (_found("data").ok, _found("data").found) == (None, f"nothing is prepared in {home} yet")
    (home / "digits").mkdir()
    (home / "digits" / "manifest.json").touch()
    assert (_found("data").ok, _found("data").found) == (True, f"prepared in {home}: digits")


def test_versions_are_held_against_the_lock() -> None:
    click = importlib.metadata.version("click")
    lock = f"# made by uv\nclick=={click}\n    # via flyweight\ncolorama==0.4.6 ; sys_platform == 'win32'\n"
    assert doctor.wrong_packages(lock) == []
    assert doctor.wrong_packages("click==1.0\nno-such-package==2.3\n") == [
        f"click is {click}, not 1.0",
        "no-such-package 2.3 is missing",
    ]


def test_a_local_build_of_the_wanted_version_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.wrong_packages("torch==2.13.0\n") == []


def test_a_taken_port_is_named_with_the_variable_that_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("FLYWEIGHT_MLFLOW_PORT", str(port))
        found = _found("MLflow port")
    assert found.ok is False
    assert found.found.startswith(f"port {port}, which MLflow needs, is taken by ")
    assert found.fix == "stop that, or set FLYWEIGHT_MLFLOW_PORT to a free port"


def test_a_secret_that_others_can_read_is_a_problem(home: Path) -> None:
    directory = home / "home" / "airflow"
    directory.mkdir(parents=True)
    file = directory / "passwords.json"
    file.write_text("{}")
    file.chmod(0o644)
    found = _found("secrets")
    assert found.ok is False
    assert found.found == f"others can read {file}"
    assert found.fix == f"chmod 600 {file}"


def test_a_service_that_is_ill_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    ill = services.ServiceStatus("mlflow", True, False, "http://127.0.0.1:5000 does not answer")
    rest = [services.ServiceStatus(name, False, False, "") for name in ("triton", "airflow")]
    monkeypatch.setattr(services, "status", lambda: [ill, *rest])
    assert _found("MLflow") == doctor.Check("MLflow", False, ill.detail, "flyweight down && flyweight up")
    assert _found("Airflow") == doctor.Check("Airflow", None, "not running", "flyweight up airflow")


def test_too_little_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e9}))
    found = _found("disk")
    assert found.ok is False
    assert "FLYWEIGHT_HOME" in found.fix


def test_the_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.services import doctor; doctor.checks(); "
        "print({'torch', 'mlflow', 'airflow', 'onnxruntime', 'great_expectations'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
