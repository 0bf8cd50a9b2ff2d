"""The numbers of the training images, beside NumPy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_toys import make

from pipeline.data.manifest import load_manifest


def test_manifest_describes_the_training_images(tmp_path: Path) -> None:
    images, labels = make(tmp_path)
    manifest = load_manifest(tmp_path)
    assert manifest.counts == {"train": 50, "validation": 7, "test": 13}
    assert manifest.image_shape == (2, 3, 4)
    np.testing.assert_allclose(manifest.mean, (images / 255).mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(manifest.std, (images / 255).std(axis=(0, 2, 3)), atol=1e-6)
    for label, baseline in enumerate(manifest.baseline):
        mine = images[labels == label].reshape(-1, 24)
        assert baseline.images == len(mine)
        np.testing.assert_allclose(baseline.mean_image, mine.mean(axis=0), atol=0.051)
        assert baseline.std == pytest.approx(np.sqrt(mine.var(axis=0).mean()), abs=0.01)
