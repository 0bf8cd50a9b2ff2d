"""Fashion-MNIST: 70,000 grey images of 28x28 pixels, articles of clothing in 10 classes.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms"
(https://arxiv.org/abs/1708.07747, https://github.com/zalandoresearch/fashion-mnist).

Three sources are tried in turn. Their .gz files differ in their headers, so the SHA-256 is of what is inside.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.data.manifest import Images, Labels
from pipeline.errors import DataError

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_log = logging.getLogger(__name__)


class FashionMNIST:
    """Articles of clothing, 28x28."""

    labels = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    image_shape = (1, 28, 28)

    def fetch(self, directory: Path) -> None:
        """Put the four files, unpacked, into `directory`, from the first source that has them all.

        Raises `DataError` listing every source, why it failed and what the user can do.
        """
        failures = []
        for title, source in _sources().items():
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    contents = _unpack(source(Path(scratch)))
                except DataError as error:
                    _log.info("%s: %s", title, error)
                    failures.append(f"  - {title}: {error}")
                    continue
            for name, content in contents.items():
                (directory / name).write_bytes(content)
            _log.info("Fashion-MNIST taken from: %s", title)
            return
        raise DataError(
            "\n".join(
                [
                    "Fashion-MNIST cannot be had from anywhere; tried:",
                    *failures,
                    f"Do one of these and run again: `sudo apt-get install {PACKAGE}` (after `sudo apt-get update`), or "
                    f"get online, or put {', '.join(f'{name}.gz' for name in SHA256)} from another machine into {INSTALLED}.",
                ]
            )
        )

    def read(self, directory: Path) -> Mapping[str, tuple[Images, Labels]]:
        """Return 'train' (60,000) and 'test' (10,000), images (N, 1, 28, 28)."""
        return {
            split: (
                _payload(directory / f"{prefix}-images-idx3-ubyte", 16).reshape(-1, *self.image_shape),
                _payload(directory / f"{prefix}-labels-idx1-ubyte", 8).astype(np.int64),
            )
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }


def _sources() -> dict[str, Callable[[Path], Path]]:
    """Each source's title and what turns a scratch directory into a directory with the four .gz files."""
    return {
        f"Debian's installed package {PACKAGE} ({INSTALLED})": lambda _: INSTALLED,
        f"apt-get download {PACKAGE}": _apt_download,
        f"download from {ADDRESS}": _download,
    }


def _apt_download(scratch: Path) -> Path:
    """Get Debian's package and unpack it, which needs no root; Debian signs what it serves."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DataError(f"there is no {tool} on this machine")
    done = _run(["apt-get", "download", PACKAGE], scratch)
    packages = list(scratch.glob("*.deb"))
    if done.returncode or not packages:
        hint = (
            " (the list of packages may be empty: `sudo apt-get update`)" if "Unable to locate" in done.stderr else ""
        )
        raise DataError(f"apt-get ended with {done.returncode}: {_last_line(done.stderr)}{hint}")
    done = _run(["dpkg", "-x", str(packages[0]), "unpacked"], scratch)
    if done.returncode:
        raise DataError(f"dpkg -x ended with {done.returncode}: {_last_line(done.stderr)}")
    return scratch / "unpacked" / INSTALLED.relative_to("/")


def _download(scratch: Path) -> Path:
    """Get the four files from the project's public address. It has no TLS; the SHA-256 vouches for them."""
    for name in SHA256:
        url = f"{ADDRESS}/{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer, (scratch / f"{name}.gz").open("wb") as file:  # noqa: S310
                shutil.copyfileobj(answer, file)
        except (urllib.error.URLError, OSError) as error:
            raise DataError(f"{url}: {getattr(error, 'reason', error)}") from error
    return scratch


def _unpack(directory: Path) -> dict[str, bytes]:
    """Return the unpacked bytes of the four files in `directory`, each checked."""
    contents = {}
    for name, expected in SHA256.items():
        path = directory / f"{name}.gz"
        try:
            content = gzip.decompress(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(f"{path} is not there") from error
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from error
        if (found := hashlib.sha256(content).hexdigest()) != expected:
            raise DataError(f"{path.name}: its SHA-256 unpacked is {found} instead of {expected}")
        contents[name] = content
    return contents


def _payload(path: Path, header: int) -> Images:
    """Return the bytes after the header of an IDX file."""
    return np.frombuffer(path.read_bytes(), np.uint8, offset=header)


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command)} did not end within {error.timeout:.0f} s") from error


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


COMPONENT = FashionMNIST
