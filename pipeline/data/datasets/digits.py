"""The UCI digits as scikit-learn ships them: 1,797 grey images of 8x8 pixels in 10 classes. No download; for tests and first looks.

Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", https://doi.org/10.24432/C50P49 (the test part of it).
There is no official split of these images, so a fifth is set aside as test, stratified, with a seed that never changes.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.data.divide import stratified
from pipeline.data.manifest import Images, Labels
from pipeline.errors import DataError

FILE = "digits.csv"
SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
TEST_IMAGES = 360
TEST_SEED = 0


class Digits:
    """Handwritten digits, 8x8."""

    labels = tuple("0123456789")
    image_shape = (1, 8, 8)

    def fetch(self, directory: Path) -> None:
        """Copy the table of pixels out of the installed scikit-learn. Raises `DataError`."""
        package = importlib.util.find_spec("sklearn")  # found, not imported: that would take seconds
        if package is None or package.origin is None:
            raise DataError("digits comes with scikit-learn, which is not installed: install requirements.lock")
        source = Path(package.origin).parent / "datasets" / "data" / f"{FILE}.gz"
        try:
            table = gzip.decompress(source.read_bytes())
        except OSError as error:
            raise DataError(f"{source} cannot be read ({error}): reinstall scikit-learn") from error
        if (found := hashlib.sha256(table).hexdigest()) != SHA256:
            raise DataError(f"{source}: its SHA-256 unpacked is {found} instead of {SHA256}: reinstall scikit-learn")
        (directory / FILE).write_bytes(table)

    def read(self, directory: Path) -> Mapping[str, tuple[Images, Labels]]:
        """Return 'train' and 'test', (N, 1, 8, 8) with the pixels 0 to 16 spread over 0 to 255."""
        table = np.loadtxt(directory / FILE, delimiter=",", dtype=np.int64)
        images = ((table[:, :-1] * 255 + 8) // 16).astype(np.uint8).reshape(-1, *self.image_shape)
        labels = table[:, -1]
        test = stratified(images, labels, TEST_IMAGES, TEST_SEED)
        return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


COMPONENT = Digits
