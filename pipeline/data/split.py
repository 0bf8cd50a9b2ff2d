"""One split of prepared data, memory-mapped: batches are gathered as arrays, never row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.manifest import Images, Labels, Manifest, load_manifest
from pipeline.data.shards import read_shard
from pipeline.errors import DataError, near_miss


class Split:
    """The images and labels of one split, memory-mapped. Make it with `open_split`."""

    def __init__(self, shards: list[Images], labels: Labels) -> None:
        self.labels = labels
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Images:
        """Return the images of `rows`, as `slice` does: so a split is read in parts as an array would be."""
        return self.slice(*rows.indices(len(self))[:2])

    def batch(self, indices: NDArray[np.int64]) -> Images:
        """Return the images at `indices` (n,), in that order, as a new array (n, C, H, W)."""
        if len(self._shards) == 1:
            return self._shards[0][indices]
        out = np.empty((len(indices), *self._shards[0].shape[1:]), np.uint8)
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(owners):
            here = owners == number
            out[here] = self._shards[number][indices[here] - self._starts[number]]
        return out

    def slice(self, start: int, stop: int) -> Images:
        """Return images `start` to `stop`: a read-only view where they lie in one shard, else a new array."""
        start, stop, _ = slice(start, stop).indices(len(self))
        owner = int(np.searchsorted(self._starts, start, side="right")) - 1
        if start < stop <= self._starts[owner + 1]:
            return self._shards[owner][start - self._starts[owner] : stop - self._starts[owner]]
        return self.batch(np.arange(start, stop))

    def images(self) -> Images:
        """Return the whole split: a read-only view where it is one shard, else a new array."""
        return self.slice(0, len(self))


def open_split(data: Path, split: str) -> Split:
    """Return `split` ('train', 'validation' or 'test') of the prepared directory `data`.

    Raises `DataError` naming the file that is missing, truncated, or has other columns or rows than the manifest says.
    """
    manifest = load_manifest(data)
    paths = [path for path in sorted(manifest.shards) if path.startswith(f"{split}/")]
    if not paths:
        raise DataError(
            f"{data} has no split {split!r}; it has: {', '.join(manifest.counts)}{near_miss(split, manifest.counts)}"
        )
    tables = [_checked_shard(data, path, manifest) for path in paths]
    labels = [table["label"].to_numpy(zero_copy_only=False).astype(np.int64) for table in tables]
    return Split([_pixels(table).reshape(-1, *manifest.image_shape) for table in tables], np.concatenate(labels))


def _checked_shard(data: Path, path: str, manifest: Manifest) -> pa.RecordBatch:
    """Return the shard at `path` if its columns and rows are as the manifest says."""
    table = read_shard(data / path)
    wanted = manifest.shard_types
    if table.schema.names != list(wanted):
        raise DataError(f"{data / path} has the columns {table.schema.names} instead of {list(wanted)}")
    for column, kind in wanted.items():
        found = table.schema.field(column).type
        if found != kind:
            raise DataError(f"{data / path}: column {column!r} is {found} instead of {kind}")
        if table[column].null_count or (column == "image" and table[column].flatten().null_count):
            raise DataError(f"{data / path}: column {column!r} holds nulls")
    if table.num_rows != manifest.shards[path].rows:
        raise DataError(f"{data / path} has {table.num_rows} rows, the manifest says {manifest.shards[path].rows}")
    return table


def _pixels(table: pa.RecordBatch) -> NDArray[np.uint8]:
    return table["image"].flatten().to_numpy()
