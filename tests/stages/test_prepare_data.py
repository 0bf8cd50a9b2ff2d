"""prepare_data against a real DVC repository, whose one data set 'toy' is made by a script of ten lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from pipeline.data.split import open_split
from pipeline.errors import DataError
from pipeline.files import lock
from pipeline.machine import workspace
from pipeline.settings.data import Data
from pipeline.stages import prepare_data

MAKE = """
import sys
from pathlib import Path
import numpy as np
from pipeline.data import shards
if Path("broken").exists():
    print("error: no source of toy can be reached")
    sys.exit(int(Path("broken").read_text()))
images = np.arange(48, dtype=np.uint8).reshape(12, 1, 2, 2)
labels = np.arange(12) % 2
splits = {split: (images, labels) for split in ("train", "validation", "test")}
shards.write(Path("data/toy"), name="toy", labels=("even", "odd"), splits=splits, dropped={"duplicate": 3})
"""
DVC_YAML = """
stages:
  prepare:
    matrix: {dataset: [toy]}
    cmd: python make.py
    deps: [make.py]
    outs: ["data/${item.dataset}"]
"""


def commit(root: Path) -> str:
    git = ["git", "-C", str(root), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "test"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which toy was prepared once."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("built")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    Repo.init(str(root)).close()
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (root / ".gitignore").write_text("/data/\n")
    (root / "make.py").write_text(MAKE)
    (root / "dvc.yaml").write_text(DVC_YAML)
    return root


@pytest.fixture
def root(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FLYWEIGHT_DATA", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(workspace.SOURCE))
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(built))
    return built


def run(out: Path, name: str = "toy") -> dict:
    out.mkdir(exist_ok=True)
    return dict(prepare_data.prepare_data(Data(dataset=name), out=out))


def no_repro(target: str) -> None:
    raise AssertionError(f"dvc repro {target} was not to run")


def test_builds_what_is_missing_then_does_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        metrics = run(tmp_path / "first")
    assert "Running stage 'prepare@toy'" in caplog.text  # what DVC says reaches the log
    assert metrics == {
        "train_images": 12, "validation_images": 12, "test_images": 12, "dropped_duplicate": 3, "classes": 2,
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["data.json", "manifest.json"]
    facts = json.loads((tmp_path / "first" / "data.json").read_text())
    assert facts["dataset"] == "toy"
    assert facts["path"] == "data/toy"
    assert facts["dvc_md5"] in (root / "dvc.lock").read_text()
    assert facts["dvc_rev"] is None  # dvc.lock is not committed yet

    revision = commit(root)
    monkeypatch.setattr(prepare_data, "_reproduce", no_repro)
    assert run(tmp_path / "second") == metrics
    assert json.loads((tmp_path / "second" / "data.json").read_text()) == {**facts, "dvc_rev": revision}


def test_changed_files_stop_it_by_name(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out")
    monkeypatch.setattr(prepare_data, "_reproduce", no_repro)
    shutil.copytree(root / "data" / "toy", tmp_path / "good")
    (root / "data/toy/train/part-00000.arrow").write_bytes(b"damaged")
    (root / "data/toy/test/part-00000.arrow").unlink()
    with pytest.raises(DataError) as caught:
        run(tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"data/toy in {root} was changed or damaged outside DVC")
    assert "  - modified: data/toy/train/part-00000.arrow\n" in message
    assert "  - deleted: data/toy/test/part-00000.arrow\n" in message
    assert "python -m dvc checkout --force data/toy" in message

    shutil.copytree(tmp_path / "good", root / "data" / "toy", dirs_exist_ok=True)
    run(tmp_path / "out")  # as dvc.lock says again


@pytest.mark.parametrize(("code", "error"), [(2, DataError), (1, RuntimeError)])
def test_failing_command_passes_on_its_words(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    dvc = tmp_path / "dvc"
    dvc.write_text(
        f"#!/bin/sh\necho 'error: no source of toy'\necho 'failed to run: x, exited with {code}'\nexit 255\n"
    )
    dvc.chmod(0o755)
    monkeypatch.setattr(prepare_data.sys, "executable", str(dvc))
    with pytest.raises(error, match=r"(?s)`dvc repro prepare@toy` failed.*error: no source of toy"):
        prepare_data._reproduce("prepare@toy")


@pytest.mark.extra
@pytest.mark.integration
@pytest.mark.parametrize(("code", "error"), [(2, DataError), (1, RuntimeError)])
def test_dvc_passes_on_the_words_of_a_failing_command(
    root: Path, tmp_path: Path, code: int, error: type[Exception]
) -> None:
    run(tmp_path / "out")
    (root / "broken").write_text(str(code))
    (root / "make.py").write_text(MAKE + "# changed\n")
    try:
        with pytest.raises(error, match=r"(?s)`dvc repro prepare@toy` failed.*no source of toy can be reached"):
            run(tmp_path / "out")
    finally:
        (root / "broken").unlink()
        (root / "make.py").write_text(MAKE)
    run(tmp_path / "out")


def test_waits_for_another_prepare_data(root: Path, tmp_path: Path) -> None:
    run(tmp_path / "out")
    worker = threading.Thread(target=run, args=(tmp_path / "other",))
    with lock(root / ".dvc" / "tmp" / "flyweight.lock"):
        worker.start()
        worker.join(0.3)
        assert worker.is_alive()
    worker.join(60)
    assert (tmp_path / "other" / "data.json").is_file()


def test_unknown_data_set_gets_the_near_miss(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepares no data set 'toys'; it prepares: toy; did you mean 'toy'\?"):
        run(tmp_path / "out", "toys")


def test_own_directory_is_taken_as_it_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out")
    shutil.copytree(root / "data" / "toy", tmp_path / "mine" / "toy")
    (tmp_path / "mine/toy/train/part-00000.arrow").unlink()  # for `validate` to find
    monkeypatch.setenv("FLYWEIGHT_DATA", str(tmp_path / "mine"))
    run(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "data.json").read_text()) == {
        "dataset": "toy", "path": str(tmp_path / "mine" / "toy"), "dvc_md5": None, "dvc_rev": None,
    }  # fmt: skip
    with pytest.raises(DataError, match="holds no prepared data"):
        run(tmp_path / "out", "other")


def test_directory_that_dvc_does_not_list_is_taken_as_it_is(root: Path, tmp_path: Path) -> None:
    run(tmp_path / "out")
    shutil.copytree(root / "data" / "toy", root / "data" / "handmade")
    run(tmp_path / "out", "handmade")
    assert json.loads((tmp_path / "out" / "data.json").read_text())["dvc_md5"] is None


@pytest.mark.integration
def test_fresh_clone_rebuilds_what_dvc_lock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "clone", "-q", str(workspace.SOURCE), str(tmp_path / "clone")], check=True)
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path / "clone"))
    monkeypatch.delenv("FLYWEIGHT_DATA", raising=False)
    run(tmp_path / "out", "digits")
    status = subprocess.run(
        ["git", "-C", str(tmp_path / "clone"), "status", "--porcelain"], check=True, capture_output=True, text=True
    )
    assert status.stdout == ""
    assert len(open_split(tmp_path / "clone" / "data" / "digits", "train")) == 1257
