from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import digits
from pipeline.errors import DataError


def test_same_images_as_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits.Digits().fetch(tmp_path)
    split = digits.Digits().read(tmp_path)
    mine = np.concatenate([split["train"][0], split["test"][0]]).reshape(-1, 64)
    theirs = np.round(load_digits().data * 255 / 16 + 1e-9).astype(np.uint8)
    assert sorted(image.tobytes() for image in mine) == sorted(image.tobytes() for image in theirs)


def test_changed_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"digits.csv.gz: its SHA-256 unpacked is 6ebb.* instead of 000.*reinstall"):
        digits.Digits().fetch(tmp_path)
    assert not list(tmp_path.iterdir())
