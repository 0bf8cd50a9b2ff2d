"""`manifest.json`: what a prepared data directory holds, and which bytes each file of it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError, model_validator

from pipeline.errors import DataError

MANIFEST_FILE = "manifest.json"

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
    """C*H*W means, one per pixel."""


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
    """One per label, in the order of `labels`."""
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


def write_manifest(data: Path, manifest: Manifest) -> None:
    """Write `manifest` into `data`; the same manifest is always the same bytes."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (data / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
