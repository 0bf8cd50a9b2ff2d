"""The sources of Fashion-MNIST, on four tiny files: which is taken, and what is said where none can be."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import fashion_mnist
from pipeline.errors import DataError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of four tiny .gz files that count as Fashion-MNIST; nothing is installed, apt-get has nothing."""
    source = tmp_path / "source"
    source.mkdir()
    hashes = {}
    for name in fashion_mnist.SHA256:
        images = "images" in name
        content = bytes(16 if images else 8) + bytes(range(3)) * (784 if images else 1)
        hashes[name] = hashlib.sha256(content).hexdigest()
        (source / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(fashion_mnist, "SHA256", hashes)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "not installed")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", "http://127.0.0.1:9")  # the discard port: nobody answers
    apt(tmp_path, monkeypatch, "echo 'E: Unable to locate package dataset-fashion-mnist' >&2; exit 100")
    return source


def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for tool in ("apt-get", "dpkg"):
        (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")


@pytest.fixture
def address(files: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetched(directory: Path) -> Path:
    directory.mkdir()
    fashion_mnist.FashionMNIST().fetch(directory)
    return directory


def test_the_installed_package_goes_first(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fashion_mnist, "INSTALLED", files)
    with caplog.at_level("INFO"):
        raw = fetched(tmp_path / "raw")
    assert sorted(path.name for path in raw.iterdir()) == sorted(fashion_mnist.SHA256)
    assert "taken from: Debian's installed package" in caplog.text
    images, labels = fashion_mnist.FashionMNIST().read(raw)["test"]
    assert images.shape == (3, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2]
    assert np.unique(images).tolist() == [0, 1, 2]


def test_apt_download_is_unpacked_without_root(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = f"unpacked/{fashion_mnist.INSTALLED.relative_to('/')}"
    apt(
        tmp_path,
        monkeypatch,
        f'if [ "$1" = download ]; then touch it.deb; else mkdir -p "{unpacked}" && cp "{files}"/* "{unpacked}"; fi',
    )
    assert len(list(fetched(tmp_path / "raw").iterdir())) == 4


def test_the_public_address_comes_last(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fashion_mnist, "ADDRESS", address)
    with caplog.at_level("INFO"):
        assert len(list(fetched(tmp_path / "raw").iterdir())) == 4
    assert f"taken from: download from {address}" in caplog.text


def test_a_source_with_other_bytes_is_passed_over(
    files: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for path in files.iterdir():
        (wrong / path.name).write_bytes(gzip.compress(b"something else"))
    monkeypatch.setattr(fashion_mnist, "INSTALLED", wrong)
    monkeypatch.setattr(fashion_mnist, "ADDRESS", address)
    with caplog.at_level("INFO"):
        fetched(tmp_path / "raw")
    assert "train-images-idx3-ubyte.gz: its SHA-256 unpacked is" in caplog.text
    assert f"taken from: download from {address}" in caplog.text


def test_no_source_lists_what_was_tried_and_what_to_do(files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetched(tmp_path / "raw")
    lines = str(caught.value).splitlines()
    assert lines[0] == "Fashion-MNIST cannot be had from anywhere; tried:"
    assert "not installed" in lines[1]
    assert "train-images-idx3-ubyte.gz is not there" in lines[1]
    assert "apt-get ended with 100: E: Unable to locate package" in lines[2]
    assert "sudo apt-get update" in lines[2]
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz: " in lines[3]
    assert "refused" in lines[3]
    assert "sudo apt-get install dataset-fashion-mnist" in lines[4]
    assert not list((tmp_path / "raw").iterdir())


def test_no_apt_on_this_machine_is_said(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt-get download dataset-fashion-mnist: there is no apt-get on this machine"):
        fetched(tmp_path / "raw")
