"""Inputs are found, told apart by content, and data is checked against its manifest before anything is made from it."""

import os

import numpy as np
import pytest

from pipeline.data import shards
from pipeline.errors import DataError, FlyweightError
from pipeline.graph import STAGES
from pipeline.tracking import inputs

TRAIN, VALIDATE = STAGES["train"], STAGES["validate"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "data"
    directory.mkdir()
    rows = (np.arange(4 * 16, dtype=np.uint8).reshape(4, 1, 4, 4), np.array([0, 1, 0, 1]))
    shards.write(directory, name="tiny", labels=("a", "b"), splits=dict.fromkeys(shards.SPLITS, rows))
    return directory


def _identity(stage, directory):
    return inputs.find_inputs(stage, {"data": str(directory)})["data"].identity


def _shard(data):
    return next((data / "train").glob("*.arrow"))


def _damage(shard):
    """Another pixel, and nothing else that a look at sizes would show."""
    bytes_ = bytearray(shard.read_bytes())
    place = bytes_.index(bytes(range(16)))
    bytes_[place] ^= 0xFF
    shard.write_bytes(bytes_)


def test_tree_hash_sees_names_and_bytes_but_not_times(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        (directory / "deep").mkdir(parents=True)
        (directory / "deep" / "a").write_bytes(b"x")
    assert inputs.tree_hash(one) == inputs.tree_hash(two)
    (two / "deep" / "a").write_bytes(b"y")
    assert inputs.tree_hash(one) != inputs.tree_hash(two)
    (two / "deep" / "a").write_bytes(b"x")
    (two / "deep" / "a").rename(two / "deep" / "b")
    assert inputs.tree_hash(one) != inputs.tree_hash(two)


def test_a_missing_input_says_how_to_give_it():
    with pytest.raises(FlyweightError, match=r"distill needs teacher: --input teacher=<run id of train"):
        inputs.find_inputs(STAGES["distill"], {"data": "/"})


def test_an_unknown_input_is_refused():
    with pytest.raises(FlyweightError, match="train has no input 'techer'; it takes: data"):
        inputs.find_inputs(TRAIN, {"techer": "x"})


def test_data_is_known_by_its_manifest_without_reading_its_bytes(data, monkeypatch):
    read = []
    real = inputs.sha256
    monkeypatch.setattr(inputs, "sha256", lambda path: read.append(path.name) or real(path))
    before = _identity(TRAIN, data)
    assert read == ["manifest.json"]
    (data / "manifest.json").write_text((data / "manifest.json").read_text() + "\n")
    assert _identity(TRAIN, data) != before


@pytest.mark.parametrize("keep_time", [False, True])
def test_the_stage_that_looks_for_damage_never_stands_in_for_changed_files(data, keep_time):
    before, shard = _identity(VALIDATE, data), _shard(data)
    assert before == _identity(VALIDATE, data)
    state = shard.stat()
    _damage(shard)
    if keep_time:
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert _identity(VALIDATE, data) != before
    assert _identity(TRAIN, data) == _identity(TRAIN, data)


def test_nothing_is_made_from_bytes_that_the_manifest_does_not_describe(data):
    inputs.check_data(data)
    _damage(_shard(data))
    with pytest.raises(
        DataError, match=rf"part-00000.arrow is not what {data}/manifest.json says.*flyweight prepare_data"
    ):
        inputs.check_data(data)
    _shard(data).unlink()
    with pytest.raises(DataError, match=r"part-00000\.arrow is missing"):
        inputs.check_data(data)


def test_what_was_checked_is_not_read_again_until_it_changes(data, monkeypatch):
    inputs.check_data(data)
    read = []
    real = inputs.sha256
    monkeypatch.setattr(inputs, "sha256", lambda path: read.append(path.name) or real(path))
    inputs.check_data(data)
    assert read == ["manifest.json"]
    _shard(data).touch()
    inputs.check_data(data)
    assert len(read) > 2


def test_a_directory_without_a_manifest_is_known_by_its_bytes(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model.json").write_text("{}")
    found = inputs.find_inputs(STAGES["distill"], {"data": str(tmp_path), "teacher": str(tmp_path / "teacher")})
    assert found["teacher"].identity == inputs.tree_hash(tmp_path / "teacher")
    inputs.check_data(tmp_path / "teacher")


def test_data_that_was_moved_is_found_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    monkeypatch.delenv("FLYWEIGHT_DATA", raising=False)
    assert inputs.data_directory("data/digits") == tmp_path / "data" / "digits"
    assert inputs.data_directory("/elsewhere/digits").as_posix() == "/elsewhere/digits"
    monkeypatch.setenv("FLYWEIGHT_DATA", str(tmp_path / "moved"))
    for recorded in ("data/digits", "/elsewhere/digits"):
        assert inputs.data_directory(recorded) == tmp_path / "moved" / "digits"
