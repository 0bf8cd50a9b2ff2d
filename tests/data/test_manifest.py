"""The manifest: what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_toys import make

from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError


def test_no_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"holds no prepared data: manifest.json cannot be read .*flyweight prepare_data"
    ):
        load_manifest(tmp_path)


def test_manifest_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"validation": 7', '"validation": 8'))
    with pytest.raises(DataError, match="counts has 8 images in validation, its shards have 7"):
        load_manifest(tmp_path)
