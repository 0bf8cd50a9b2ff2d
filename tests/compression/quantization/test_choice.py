"""Which of two graphs is kept."""

import numpy as np
import pytest

from pipeline.compression.quantization import choice
from pipeline.data import shards


@pytest.fixture
def data(tmp_path):
    images = np.zeros((200, 1, 2, 2), np.uint8)
    splits = {name: (images, np.arange(200) % 2) for name in ("train", "validation")}
    shards.write(tmp_path, name="two", labels=("a", "b"), splits=splits)
    return tmp_path


@pytest.mark.parametrize(("gained", "lost", "kept"), [(0, 0, "ptq"), (9, 2, "ptq"), (10, 2, "qat"), (2, 10, "ptq")])
def test_training_is_kept_where_its_gain_is_more_than_chance(gained, lost, kept, data, monkeypatch, tmp_path):
    images = np.arange(200)
    right = {"ptq": (images < 150) | (images >= 200 - lost), "qat": (images < 150 + gained)}
    monkeypatch.setattr(choice, "answered_right", lambda file, split: right[file.name])
    compared = choice.compare({"ptq": tmp_path / "ptq", "qat": tmp_path / "qat"}, data)
    # 12 images answered differently, won 10 to 2: 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12 = 0.0386; 9 to 2 of 11: 0.0654
    assert compared["p"] == pytest.approx({0: 1.0, 9: 134 / 2048, 10: 158 / 4096, 2: 158 / 4096}[gained])
    assert compared["kept"] == kept
