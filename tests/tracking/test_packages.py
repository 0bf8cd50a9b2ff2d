"""Versions of packages: as installed, and as the lock file says."""

from importlib import metadata

import pytest

from pipeline.machine import workspace
from pipeline.tracking import packages


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "root", lambda: tmp_path)
    return tmp_path / "requirements.lock"


def test_a_package_has_both_versions(lock):
    lock.write_text("click==8.0 \\\n    --hash=sha256:00\n")
    assert packages.versions("click") == {"click": [metadata.version("click"), "click==8.0"]}


def test_the_name_of_a_module_need_not_be_that_of_its_package(lock):
    lock.write_text('Pillow==11.0 ; python_version >= "3.11"\nPyYAML==6.0\n')
    assert packages.versions("PIL")["pillow"][1] == 'Pillow==11.0 ; python_version >= "3.11"'
    assert packages.versions("yaml")["pyyaml"] == [metadata.version("pyyaml"), "PyYAML==6.0"]


def test_what_is_neither_installed_nor_locked_is_empty(lock):
    lock.write_text("")
    assert packages.versions("no_such_package_here") == {"no-such-package-here": ["", ""]}


def test_without_a_lock_file_in_the_workspace_that_of_the_clone_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "root", lambda: tmp_path)
    assert packages.versions("torch")["torch"][1].startswith("torch==")


@pytest.fixture
def unread(tmp_path, monkeypatch):
    """Nothing of what is installed has been read by this process, nor counts after the test."""
    monkeypatch.setenv("FLYWEIGHT_CACHE", str(tmp_path))
    packages._holders.cache_clear()
    yield
    packages._holders.cache_clear()


def test_what_is_installed_is_read_once_and_kept(unread, monkeypatch):
    found = packages._holders()
    assert found["PIL"] == ["pillow"]
    packages._holders.cache_clear()
    monkeypatch.setattr(metadata, "packages_distributions", lambda: pytest.fail("read again"))
    assert packages._holders() == found


@pytest.mark.parametrize("damage", ["", "{", "[1]"])
def test_a_damaged_note_of_what_is_installed_is_written_again(unread, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"PIL": ["pillow"]})
    packages._holders()
    (kept,) = (tmp_path / "packages").iterdir()
    whole = kept.read_text()
    kept.write_text(damage)
    packages._holders.cache_clear()
    assert packages._holders() == {"PIL": ["pillow"]}
    assert kept.read_text() == whole
