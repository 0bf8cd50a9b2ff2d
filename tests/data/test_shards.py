from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipeline.data import shards
from pipeline.data.manifest import load_manifest
from pipeline.data.split import Split, open_split
from pipeline.errors import DataError
from pipeline.machine import workspace

LABELS = ("cat", "dog", "owl")


def make(directory: Path, shard_bytes: int = shards.SHARD_BYTES) -> tuple[np.ndarray, np.ndarray]:
    """Write random data and return the images and labels of train: 50 images of 2x3x4."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 2, 3, 4), dtype=np.uint8)
    labels = random.integers(0, 3, 50)
    splits = {"train": (images, labels), "validation": (images[:7], labels[:7]), "test": (images[7:20], labels[7:20])}
    shards.write(directory, name="toy", labels=LABELS, splits=splits, shard_bytes=shard_bytes)
    return images, labels


@pytest.fixture(params=[24 * 8, shards.SHARD_BYTES], ids=["seven shards", "one shard"])
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Split, np.ndarray, np.ndarray]:
    images, labels = make(tmp_path, request.param)
    assert len(list((tmp_path / "train").iterdir())) == {24 * 8: 7}.get(request.param, 1)
    return open_split(tmp_path, "train"), images, labels


def test_reads_what_was_written(toy: tuple[Split, np.ndarray, np.ndarray]) -> None:
    split, images, labels = toy
    assert len(split) == 50
    np.testing.assert_array_equal(split.images(), images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.labels.dtype == np.int64
    assert split.images().dtype == np.uint8


@pytest.mark.parametrize("indices", [[0], [49, 0, 8, 7, 8], list(range(50))[::-1], []])
def test_batch_gathers_in_the_order_asked_for(toy: tuple, indices: list[int]) -> None:
    split, images, _ = toy
    rows = np.array(indices, np.int64)
    batch = split.batch(rows)
    np.testing.assert_array_equal(batch, images[rows])
    assert batch.flags.writeable  # a new array, which torch takes without a warning


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (3, 6), (6, 10), (8, 16), (40, 99), (5, 5), (50, 60)])
def test_slice_equals_numpys(toy: tuple, start: int, stop: int) -> None:
    split, images, _ = toy
    np.testing.assert_array_equal(split.slice(start, stop), images[start:stop])


def test_a_slice_of_one_shard_is_no_copy(tmp_path: Path) -> None:
    make(tmp_path)
    split = open_split(tmp_path, "train")
    assert np.shares_memory(split.images(), split.slice(3, 9))
    assert not split.images().flags.writeable


def test_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(file) for file in files] == [
        "manifest.json", "test/part-00000.arrow", "train/part-00000.arrow", "validation/part-00000.arrow",
    ]  # fmt: skip
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


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


def test_content_hashes_are_equal_for_equal_pixels_alone() -> None:
    images = np.zeros((4, 1, 2, 2), np.uint8)
    images[1] = 1
    images[3] = 1
    hashes = shards.content_hashes(images)
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]
    assert shards.content_hashes(images, key="17")[0] != hashes[0]


def shard(directory: Path) -> Path:
    return directory / "validation" / "part-00000.arrow"


def rewrite(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def floats(directory: Path) -> None:
    pixels = np.zeros(7 * 24, np.float32)
    pixels[5] = np.nan
    image = pa.FixedSizeListArray.from_arrays(pa.array(pixels), 24)
    rewrite(shard(directory), {"image": image, "label": pa.array([0] * 7, pa.int32())})


def nulls(directory: Path) -> None:
    image = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(7 * 24, np.uint8)), 24)
    rewrite(shard(directory), {"image": image, "label": pa.array([None] * 7, pa.int32())})


def six_rows(directory: Path) -> None:
    image = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(6 * 24, np.uint8)), 24)
    rewrite(shard(directory), {"image": image, "label": pa.array([0] * 6, pa.int32())})


DAMAGE = {
    "missing": (lambda d: shard(d).unlink(), "is missing"),
    "truncated": (lambda d: shard(d).write_bytes(shard(d).read_bytes()[:500]), "is truncated or no Arrow file"),
    "empty": (lambda d: shard(d).write_bytes(b""), "is truncated or no Arrow file"),
    "columns": (lambda d: rewrite(shard(d), {"label": pa.array([1])}), r"has the columns \['label'\] instead of"),
    "floats": (floats, r"column 'image' is fixed_size_list<item: float>\[24\] instead of fixed_size_list<item: uint8>"),
    "nulls": (nulls, "column 'label' holds nulls"),
    "rows": (six_rows, "has 6 rows, the manifest says 7"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_shard_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make(tmp_path)
    damage, message = DAMAGE[kind]
    damage(tmp_path)
    with pytest.raises(DataError, match=rf"validation/part-00000\.arrow:? {message}"):
        open_split(tmp_path, "validation")
    assert len(open_split(tmp_path, "train")) == 50


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


def test_unknown_split_gets_the_near_miss(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=r"no split 'tests'; it has: train, validation, test; did you mean 'test'\?"):
        open_split(tmp_path, "tests")


def test_dvc_lock_is_of_this_code_and_these_settings() -> None:
    """What dvc.lock was made from is what stands here; else run `python -m dvc repro` and commit dvc.lock."""
    lock = yaml.safe_load((workspace.SOURCE / "dvc.lock").read_text())["stages"]
    settings = yaml.safe_load((workspace.SOURCE / "params.yaml").read_text())["datasets"]
    assert {f"prepare@{name}" for name in settings} <= set(lock)
    for stage in lock.values():
        for dependency in stage["deps"]:
            if dependency["path"].startswith("pipeline/"):
                found = hashlib.md5((workspace.SOURCE / dependency["path"]).read_bytes()).hexdigest()
                assert found == dependency["md5"], (
                    f"{dependency['path']} changed: run `python -m dvc repro`, commit dvc.lock"
                )
        for name, value in stage.get("params", {}).get("params.yaml", {}).items():
            assert settings[name.removeprefix("datasets.")] == value
