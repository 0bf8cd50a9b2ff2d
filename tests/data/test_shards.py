"""Shards: the same bytes for the same content, and that dvc.lock is of this code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from data_toys import make

from pipeline.data import shards
from pipeline.machine import workspace
from pipeline.settings import reader


def test_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(file) for file in files] == [
        "manifest.json", "test/part-00000.arrow", "train/part-00000.arrow", "validation/part-00000.arrow",
    ]  # fmt: skip
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_content_hashes_are_equal_for_equal_pixels_alone() -> None:
    images = np.zeros((4, 1, 2, 2), np.uint8)
    images[1] = 1
    images[3] = 1
    hashes = shards.content_hashes(images)
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]
    assert shards.content_hashes(images, key="17")[0] != hashes[0]


def test_dvc_lock_is_of_this_code_and_these_settings() -> None:
    """What dvc.lock was made from is what stands here; else run `python -m dvc repro` and commit dvc.lock."""
    lock = reader.read((workspace.SOURCE / "dvc.lock").read_text(), "dvc.lock")["stages"]
    settings = reader.read((workspace.SOURCE / "params.yaml").read_text(), "params.yaml")["datasets"]
    assert {f"prepare@{name}" for name in settings} <= set(lock)
    for stage in lock.values():
        for dependency in stage["deps"]:
            if dependency["path"].startswith("pipeline/"):
                found = hashlib.md5((workspace.SOURCE / dependency["path"]).read_bytes()).hexdigest()
                assert found == dependency["md5"], (
                    f"{dependency['path']} changed: run `python -m dvc repro`, commit dvc.lock"
                )
        for name, value in stage.get("params", {}).get("params.yaml", {}).items():
            assert settings[name.removeprefix("datasets.")] == value
