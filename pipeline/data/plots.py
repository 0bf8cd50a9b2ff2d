"""Pictures of prepared data: how many images each class has, and what they look like on average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.data.manifest import Manifest


def draw(manifest: Manifest, classes: pa.Table, means: dict[str, NDArray[np.float64]], plots: Path) -> None:
    """Draw how many images each class has, and the mean image of each class, for every split."""
    plots.mkdir()
    splits, labels = list(manifest.counts), manifest.labels
    counts = np.array(classes["images"].to_pylist()).reshape(len(splits), len(labels))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for number, split in enumerate(splits):
        axes.bar(np.arange(len(labels)) + 0.27 * (number - 1), counts[number], 0.25, label=split)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set(ylabel="images", title=f"{manifest.name}: images of each class")
    figure.legend(loc="outside right upper")
    figure.savefig(plots / "class_counts.png", dpi=100)

    _, height, width = manifest.image_shape
    rows = [np.hstack([mean.reshape(manifest.image_shape).mean(axis=0) for mean in means[split]]) for split in splits]
    figure = Figure(figsize=(len(labels), len(splits) * height / width + 1), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.vstack(rows), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks((np.arange(len(labels)) + 0.5) * width - 0.5, labels, rotation=30, ha="right")
    axes.set_yticks((np.arange(len(splits)) + 0.5) * height - 0.5, splits)
    axes.set_title(f"{manifest.name}: mean image of each class")
    figure.savefig(plots / "mean_images.png", dpi=100)
