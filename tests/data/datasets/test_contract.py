"""Every file in pipeline/data/datasets/ keeps to the Dataset protocol, and `python -m pipeline.data` prepares it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline.data.__main__ as command
from pipeline import components
from pipeline.data.datasets import fashion_mnist
from pipeline.data.manifest import load_manifest
from pipeline.machine import workspace
from pipeline.settings import parse

NAMES = components.names("datasets")


def small_fashion_mnist(directory: Path) -> None:
    """Write the four files with two images per class: the real ones have to be fetched from elsewhere."""
    for name in fashion_mnist.SHA256:
        images = "images" in name
        content = bytes(range(256)) * 62 if images else bytes(range(10)) * 2
        (directory / name).write_bytes(bytes(16 if images else 8) + content[: 20 * 784 if images else 20])


IN_SMALL = {"fashion_mnist": small_fashion_mnist}
"""Data set -> what writes files as `fetch` would, where no source may be reachable."""


@pytest.mark.parametrize("name", NAMES)
def test_has_labels_and_shape_and_is_known_to_dvc_and_settings(name: str) -> None:
    dataset = components.build("datasets", name, {})
    assert len(dataset.labels) == len(set(dataset.labels)) > 1
    assert len(dataset.image_shape) == 3
    assert name in parse.load().datasets
    assert f"prepare@{name}:" in (workspace.SOURCE / "dvc.lock").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_read_gives_train_and_test(name: str, tmp_path: Path) -> None:
    dataset = components.build("datasets", name, {})
    IN_SMALL.get(name, dataset.fetch)(tmp_path)
    for images, labels in dataset.read(tmp_path).values():
        assert images.shape == (len(labels), *dataset.image_shape)
        assert images.dtype == np.uint8
        assert images.max() == 255
        assert set(labels.tolist()) == set(range(len(dataset.labels)))


def test_digits_from_the_package_to_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "recipes"):
        source = workspace.SOURCE / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    (tmp_path / "data" / "digits").mkdir(parents=True)
    (tmp_path / "data" / "digits" / "stale").touch()
    assert command.main(["fetch", "digits"]) == 0
    assert command.main(["prepare", "digits"]) == 0
    assert load_manifest(tmp_path / "data" / "digits").counts == {"train": 1257, "validation": 180, "test": 360}
    assert sorted(path.name for path in (tmp_path / "data").rglob("*") if path.is_file()) == [
        "digits.csv", "manifest.json", *["part-00000.arrow"] * 3,
    ]  # fmt: skip


def test_unknown_data_set_is_the_users_error(caplog: pytest.LogCaptureFixture) -> None:
    assert command.main(["prepare", "digit"]) == 2
    assert (
        "'datasets' in params.yaml has no 'digit'; it has: fashion_mnist, digits; did you mean 'digits'?" in caplog.text
    )
