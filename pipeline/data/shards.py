"""Prepared data on disk: `manifest.json` beside `train/`, `validation/` and `test/`, folders of Arrow IPC shards.

A shard is one record batch with the columns ``image`` (fixed_size_list<uint8>[C*H*W]) and ``label`` (int32). Shards are
memory-mapped, so several processes share their pages.
The bytes depend on the pixels and labels alone: no time, no machine, no library version. dvc.lock relies on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.baseline import channel_statistics, class_baseline
from pipeline.data.manifest import Images, Labels, Manifest, Shard, write_manifest
from pipeline.errors import DataError
from pipeline.files import sha256

SPLITS = ("train", "validation", "test")
SHARD_BYTES = 16 * 2**20


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
    mean, std = channel_statistics(images)
    manifest = Manifest(
        name=name,
        labels=labels,
        image_shape=images.shape[1:],
        counts={split: len(numbers) for split, (_, numbers) in splits.items()},
        mean=mean,
        std=std,
        baseline=tuple(class_baseline(images[numbers == label]) for label in range(len(labels))),
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
