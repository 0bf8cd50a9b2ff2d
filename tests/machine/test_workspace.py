"""The workspace may be anywhere; what belongs to the package is found wherever the workspace is."""

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from pipeline.machine import places, workspace


def test_the_workspace_is_the_clone_unless_it_is_configured(monkeypatch, tmp_path):
    monkeypatch.delenv("FLYWEIGHT_ROOT", raising=False)
    assert workspace.root() == workspace.SOURCE == Path(__file__).parents[2]
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    assert workspace.root() == tmp_path


def test_the_stores_follow_the_workspace_and_the_variables_that_move_them(monkeypatch, tmp_path):
    for name in ("HOME", "CACHE", "DATA", "TRITON_REPOSITORY", "TRITON_HOME"):
        monkeypatch.delenv(f"FLYWEIGHT_{name}", raising=False)
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    assert places.home() == tmp_path / ".flyweight"
    assert places.data("digits") == tmp_path / "data" / "digits"
    assert places.triton_repository() == tmp_path / "triton_repo"
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "elsewhere"))
    assert places.home() == tmp_path / "elsewhere"


def test_a_workspace_outside_the_clone_has_settings_of_its_own_and_the_packages_files(tmp_path):
    """`check` with another params.yaml, in a directory that holds no code; package files are found all the same."""
    shutil.copy(workspace.SOURCE / "params.yaml", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("seed: 5\n")
    code = (
        "from pipeline.settings import parse; from pipeline.serving.triton import repository, server;"
        "from pipeline.services import airflow_settings;"
        "print(parse.recipes(), parse.load('mine').seed, repository.BACKEND.is_file(), server.REQUIREMENTS.is_file(),"
        "(airflow_settings.DAGS / 'make_proxy.py').is_file())"
    )
    environment = {**os.environ, "FLYWEIGHT_ROOT": str(tmp_path), "PYTHONPATH": str(workspace.SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "['mine'] 5 True True True\n", done.stderr


def test_what_the_package_reads_is_inside_it():
    """So that a wheel has it; setuptools takes these patterns from pyproject.toml."""
    package = resources.files("pipeline")
    for path in ("report/page.html.j2", "serving/triton/backend/model.py", "serving/triton/requirements.txt"):
        assert package.joinpath(path).is_file(), path
