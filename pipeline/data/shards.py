"""Prepared data on disk: `manifest.json` beside `train/`, `validation/` and `test/`, folders of Arrow IPC shards.

A shard is one record batch with the columns ``image`` (fixed_size_list<uint8>[C*H*W]) and ``label`` (int32). Shards are
memory-mapped, so several processes share one copy, and batches are gathered as arrays, never row by row.
The bytes depend on the pixels and labels alone: no time, no machine, no library version. dvc.lock relies on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError, model_validator

from pipeline.errors import DataError, near_miss
from pipeline.files import sha256

MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "validation", "test")
SHARD_BYTES = 16 * 2**20

Images: TypeAlias = NDArray[np.uint8]
"""(N, C, H, W) raw pixels."""
Labels: TypeAlias = NDArray[np.int64]
"""(N,) class numbers."""

_PixelRow = Annotated[
    tuple[float, ...],
    BeforeValidator(lambda value: value.split() if isinstance(value, str) else value),
    PlainSerializer(lambda value: " ".join(f"{pixel:g}" for pixel in value), return_type=str),
]
"""Pixels as one string in JSON, so that a mean image is one line of the manifest."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Frozen):
    """What a shard file must be."""

    rows: int
    sha256: str


class ClassBaseline(_Frozen):
    """How the training images of one class look, in raw pixels (0 to 255)."""

    images: int
    mean: float
    """Mean of all pixels."""
    std: float
    """Root mean square, over the pixels, of each pixel's standard deviation over the images."""
    mean_image: _PixelRow
    """C*H*W means, one a pixel."""


class Manifest(_Frozen):
    """What a prepared data directory holds."""

    name: str
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(channels, height, width)"""
    counts: dict[str, int]
    """Split -> images."""
    mean: tuple[float, ...]
    """Mean of each channel of the training pixels / 255."""
    std: tuple[float, ...]
    """Standard deviation of each channel of the training pixels / 255."""
    baseline: tuple[ClassBaseline, ...]
    """One a label, in the order of `labels`."""
    dropped: dict[str, int]
    """Reason -> original images that were left out."""
    shards: dict[str, Shard]
    """Path relative to the directory -> what the file must be."""

    @model_validator(mode="after")
    def _agree(self) -> Manifest:
        channels, pixels = self.image_shape[0], int(np.prod(self.image_shape))
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(f"mean and std must have one value for each of {channels} channels")
        if len(self.baseline) != len(self.labels) or any(len(b.mean_image) != pixels for b in self.baseline):
            raise ValueError(
                f"baseline must have a mean image of {pixels} pixels for each of {len(self.labels)} labels"
            )
        for split, count in self.counts.items():
            rows = sum(shard.rows for path, shard in self.shards.items() if path.startswith(f"{split}/"))
            if rows != count:
                raise ValueError(f"counts has {count} images in {split}, its shards have {rows}")
        return self

    @property
    def shard_types(self) -> dict[str, pa.DataType]:
        """Column -> Arrow type that every shard must have."""
        return {"image": pa.list_(pa.uint8(), int(np.prod(self.image_shape))), "label": pa.int32()}


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


def load_manifest(data: Path) -> Manifest:
    """Return the manifest of the prepared directory `data`. Raises `DataError`."""
    path = data / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{data} holds no prepared data: {MANIFEST_FILE} cannot be read ({error.strerror}). "
            f"Run `flyweight prepare_data` (or `dvc repro`)."
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a manifest: {error}") from error


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


def read_shard(path: Path) -> pa.RecordBatch:
    """Return the record batch in the memory-mapped file `path`, whatever its columns. Raises `DataError`."""
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1:
                raise DataError(f"{path} is in {reader.num_record_batches} record batches instead of 1")
            return reader.get_batch(0)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is truncated or no Arrow file ({error})") from error


def write(
    data: Path,
    *,
    name: str,
    labels: tuple[str, ...],
    splits: Mapping[str, tuple[Images, Labels]],
    dropped: Mapping[str, int] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write `splits` ('train' at least) as a prepared directory and return its manifest, which is written last."""
    shards: dict[str, Shard] = {}
    for split, (images, numbers) in splits.items():
        shards |= write_split(data, split, images, numbers, shard_bytes)
    images, numbers = splits["train"]
    mean, std = _channel_statistics(images)
    manifest = Manifest(
        name=name,
        labels=labels,
        image_shape=images.shape[1:],
        counts={split: len(numbers) for split, (_, numbers) in splits.items()},
        mean=mean,
        std=std,
        baseline=tuple(_class_baseline(images[numbers == label]) for label in range(len(labels))),
        dropped=dict(dropped or {}),
        shards=shards,
    )
    write_manifest(data, manifest)
    return manifest


def write_split(
    data: Path, split: str, images: Images, labels: Labels, shard_bytes: int = SHARD_BYTES
) -> dict[str, Shard]:
    """Write `images` (N, C, H, W) and `labels` (N,) as shards of about `shard_bytes`; return what a manifest says of them."""
    folder = data / split
    folder.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(images.shape[1:]))
    rows = max(1, shard_bytes // size)
    shards = {}
    for number, start in enumerate(range(0, len(images), rows)):
        flat = np.ascontiguousarray(images[start : start + rows]).reshape(-1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.uint8()), size)
        batch = pa.record_batch(
            {"image": column, "label": pa.array(labels[start : start + rows].astype(np.int32), pa.int32())}
        )
        path = folder / f"part-{number:05d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        shards[f"{split}/{path.name}"] = Shard(rows=batch.num_rows, sha256=sha256(path))
    return shards


def content_hashes(images: Images, key: str = "") -> NDArray[np.bytes_]:
    """Return a hash of each image's pixels (N,), equal only for equal images; another `key` gives another order."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=16, key=key.encode()).hexdigest() for image in flat]
    return np.array(hashes, dtype="S32")


def write_manifest(data: Path, manifest: Manifest) -> None:
    """Write `manifest` into `data`; the same manifest is always the same bytes."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (data / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


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


def _channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel / 255, from exact integer sums: the same on every machine."""
    pairs = [_moments(np.bincount(images[:, channel].reshape(-1), minlength=256)) for channel in range(images.shape[1])]
    return tuple(round(mean / 255, 6) for mean, _ in pairs), tuple(round(std / 255, 6) for _, std in pairs)


def _moments(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation of values 0 to 255 that occur so often."""
    values = np.arange(256)
    count, total, squares = (int(histogram @ power) for power in (values**0, values, values**2))
    return total / count, (squares / count - (total / count) ** 2) ** 0.5


def _class_baseline(images: Images) -> ClassBaseline:
    flat = images.reshape(len(images), -1)
    count = max(1, len(flat))
    mean = flat.sum(axis=0, dtype=np.int64) / count
    squares = np.einsum("np,np->p", flat, flat, dtype=np.int64) / count
    return ClassBaseline(
        images=len(flat),
        mean=round(float(mean.mean()), 2),
        std=round(float(np.sqrt((squares - mean**2).mean())), 2),
        mean_image=tuple(np.round(mean, 1).tolist()),
    )
