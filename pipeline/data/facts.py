"""Facts about prepared data as Arrow tables: one row a shard, an image, a class. Reads what `pipeline.data.shards` would refuse.

`validate` holds these tables to its expectations. Everything damaged becomes a row that says so, so that one look at the
data names every problem. The column ``where`` of each table says which thing a row is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.manifest import Manifest
from pipeline.data.shards import content_hashes, read_shard
from pipeline.errors import DataError
from pipeline.files import sha256

_CHUNK = 4096
CHANCE = 5.0
"""How far above its mean the squared distance of two mean images may be by chance: in digits and Fashion-MNIST 999 of
1,000 random subsets of a class stay below 3 to 5 times it (few directions carry most of a class's variance)."""


@dataclass(frozen=True)
class Pixels:
    """What could be read of one shard."""

    path: str
    images: NDArray[Any]
    """(rows, pixels); float with NaN where pixels are missing."""
    labels: NDArray[np.float64]
    """(rows,); NaN where the label is missing or no number."""


def read(data: Path, manifest: Manifest) -> tuple[pa.Table, dict[str, list[Pixels]]]:
    """Return the table of shards (``file_is`` says what is wrong with the file), and what could be read of each split."""
    rows = []
    splits: dict[str, list[Pixels]] = {split: [] for split in manifest.counts}
    for path in sorted({*manifest.shards, *_unlisted(data, manifest)}):
        row, pixels = _shard(data, path, manifest)
        rows.append(row)
        if pixels is not None:
            splits[path.partition("/")[0]].append(pixels)
    text, number = pa.string(), pa.int64()
    schema = pa.schema(
        {"where": text, "file_is": text, "columns": text, "image_type": text, "label_type": text}
        | {"rows": number, "manifest_rows": number, "sha256": text, "manifest_sha256": text}
    )
    return pa.Table.from_pylist(rows, schema), splits


def image_tables(splits: dict[str, list[Pixels]]) -> dict[str, pa.Table]:
    """Return for each split a table of its images: label, pixel facts, and which other images are equal to it.

    ``duplicate_of`` names an equal image before it in the split, ``also_in`` an equal one in a later split.
    """
    where = {split: [line for shard in shards for line in _where(shard)] for split, shards in splits.items()}
    hashes = {
        split: np.concatenate([np.empty(0, "S32"), *(content_hashes(shard.images) for shard in shards)])
        for split, shards in splits.items()
    }
    tables = {}
    for number, (split, shards) in enumerate(splits.items()):
        also_in = np.full(len(hashes[split]), None, object)
        for later in list(splits)[number + 1 :]:
            _mark(also_in, hashes[split], hashes[later], where[later])
        columns = {
            "where": pa.array(where[split], pa.string()),
            "label": _whole_numbers(np.concatenate([np.empty(0), *(shard.labels for shard in shards)])),
            **_pixel_facts(shards),
            "duplicate_of": pa.array(_duplicates(hashes[split], where[split]), pa.string()),
            "also_in": pa.array(also_in, pa.string()),
        }
        tables[split] = pa.table(columns)
    return tables


def class_table(splits: dict[str, list[Pixels]], manifest: Manifest) -> tuple[pa.Table, dict[str, NDArray[np.float64]]]:
    """Return a table of each split's classes, and for each split the mean images (classes, pixels).

    ``times_fewer``: images of the split's most frequent class to this one's. ``drift``: root mean square distance of the
    mean image from the baseline's, in standard deviations of the baseline's pixels, less what chance could bring: the
    means of n and m images of one class are 1/n + 1/m apart on average (squared), times `CHANCE`.
    """
    rows, means = [], {}
    for split, shards in splits.items():
        counts, sums = _class_sums(shards, manifest)
        atleast_one = np.maximum(counts, 1)
        means[split] = sums / atleast_one[:, None]
        times_fewer = counts.max() / atleast_one
        for label, (name, baseline) in enumerate(zip(manifest.labels, manifest.baseline, strict=True)):
            mean = means[split][label]
            row = {"where": f"{split}/{name}", "images": int(counts[label]), "times_fewer": float(times_fewer[label])}
            row |= {"pixel_mean": None, "baseline_pixel_mean": baseline.mean, "drift": None}
            if counts[label] and baseline.images:
                distance = np.mean((mean - np.array(baseline.mean_image)) ** 2) / max(baseline.std, 1.0) ** 2
                chance = CHANCE * (1 / counts[label] + 1 / baseline.images)
                row |= {"pixel_mean": float(mean.mean()), "drift": float(np.sqrt(max(0.0, distance - chance)))}
            rows.append(row)
    return pa.Table.from_pylist(rows), means


def _unlisted(data: Path, manifest: Manifest) -> Iterator[str]:
    for split in manifest.counts:
        yield from (f"{split}/{path.name}" for path in (data / split).glob("*"))


def _shard(data: Path, path: str, manifest: Manifest) -> tuple[dict[str, Any], Pixels | None]:
    expected = manifest.shards.get(path)
    row: dict[str, Any] = {"where": path}
    if expected is None:
        return row | {"file_is": "not in the manifest"}, None
    row |= {"manifest_rows": expected.rows, "manifest_sha256": expected.sha256}
    try:
        batch = read_shard(data / path)
    except DataError as error:
        return row | {"file_is": str(error).removeprefix(f"{data / path} is ")}, None
    row |= {"columns": ", ".join(batch.schema.names), "rows": batch.num_rows, "sha256": sha256(data / path)}
    types = {name: batch.schema.field(name).type for name in ("image", "label") if name in batch.schema.names}
    row |= {f"{name}_type": str(kind) for name, kind in types.items()}
    if not pa.types.is_fixed_size_list(types.get("image")) or not _is_number(types["image"].value_type):
        return row, None
    values = batch["image"].values.to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
    if batch["image"].null_count:
        values = np.where(batch["image"].is_null().to_numpy(zero_copy_only=False)[:, None], np.nan, values)
    labels = np.full(batch.num_rows, np.nan)
    if _is_number(types.get("label")):
        labels = batch["label"].to_numpy(zero_copy_only=False).astype(np.float64)
    return row, Pixels(path, values, labels)


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _where(shard: Pixels) -> list[str]:
    labels = ("no label" if np.isnan(label) else f"label {label:g}" for label in shard.labels)
    return [f"{shard.path} row {row} ({label})" for row, label in enumerate(labels)]


def _whole_numbers(labels: NDArray[np.float64]) -> pa.Array:
    """Labels as integers where they all are, so that a label 11 is shown as 11 and not as 11.0."""
    whole = bool(np.all(np.isnan(labels) | (labels == np.round(labels))))
    return pa.array(labels, pa.float64(), from_pandas=True).cast(pa.int64() if whole else pa.float64())


def _pixel_facts(shards: list[Pixels]) -> dict[str, pa.Array]:
    facts: dict[str, list[NDArray[Any]]] = {"pixels": [], "missing_pixels": [], "pixel_min": [], "pixel_max": []}
    for shard in shards:
        for start in range(0, len(shard.images), _CHUNK):
            images = shard.images[start : start + _CHUNK]
            missing = np.isnan(images) if images.dtype.kind == "f" else np.zeros((len(images), 1))
            facts["pixels"].append(np.full(len(images), images.shape[1], np.int64))
            facts["missing_pixels"].append(missing.sum(axis=1))
            facts["pixel_min"].append(np.fmin.reduce(images, axis=1))
            facts["pixel_max"].append(np.fmax.reduce(images, axis=1))
    return {
        name: pa.array(np.concatenate([np.empty(0), *parts]), pa.float64(), from_pandas=True)
        for name, parts in facts.items()
    }


def _duplicates(hashes: NDArray[np.bytes_], where: list[str]) -> NDArray[Any]:
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    found = np.full(len(hashes), None, object)
    for row in np.flatnonzero(first[group] != np.arange(len(hashes))):
        found[row] = where[first[group[row]]]
    return found


def _mark(found: NDArray[Any], hashes: NDArray[np.bytes_], others: NDArray[np.bytes_], where: list[str]) -> None:
    """Set `found` to where the equal image is among `others`, for every image that is there."""
    if not len(others):
        return
    order = np.argsort(others, kind="stable")
    position = np.minimum(np.searchsorted(others[order], hashes), len(others) - 1)
    for row in np.flatnonzero(others[order][position] == hashes):
        found[row] = where[order[position[row]]]


def _class_sums(shards: list[Pixels], manifest: Manifest) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the images of each class (classes,) and the sums of their pixels (classes, pixels)."""
    counts = np.zeros(len(manifest.labels), np.int64)
    sums = np.zeros((len(manifest.labels), int(np.prod(manifest.image_shape))))
    for shard in shards:
        if shard.images.shape[1] != sums.shape[1]:
            continue
        for label in range(len(counts)):
            images = shard.images[shard.labels == label]
            counts[label] += len(images)
            sums[label] += np.nansum(images, axis=0, dtype=np.float64)
    return counts, sums
