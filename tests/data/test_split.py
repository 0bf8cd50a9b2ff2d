"""A split beside NumPy's indexing, and damaged shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_toys import make

from pipeline.data import shards
from pipeline.data.split import Split, open_split
from pipeline.errors import DataError


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
    np.testing.assert_array_equal(split[start:stop], images[start:stop])


def test_a_slice_of_one_shard_is_no_copy(tmp_path: Path) -> None:
    make(tmp_path)
    split = open_split(tmp_path, "train")
    assert np.shares_memory(split.images(), split.slice(3, 9))
    assert not split.images().flags.writeable


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


def test_unknown_split_gets_the_near_miss(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=r"no split 'tests'; it has: train, validation, test; did you mean 'test'\?"):
        open_split(tmp_path, "tests")
