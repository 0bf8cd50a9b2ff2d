"""What must hold of prepared data, as expectations of Great Expectations on the tables of `pipeline.data.facts`."""

from __future__ import annotations

import great_expectations.expectations as gxe
import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.settings.data import Expectations


def shard_expectations(manifest: Manifest) -> list[gxe.Expectation]:
    """Return what must hold of every shard: it is whole, and as the manifest says."""
    types = {name: str(kind) for name, kind in manifest.shard_types.items()}
    return [
        gxe.ExpectColumnValuesToBeNull(column="file_is", description="every file is in the manifest and can be read"),
        gxe.ExpectColumnValuesToBeInSet(
            column="columns", value_set=[", ".join(types)], description=f"the columns are {', '.join(types)}"
        ),
        *(
            gxe.ExpectColumnValuesToBeInSet(
                column=f"{name}_type", value_set=[kind], description=f"column {name} is {kind}"
            )
            for name, kind in types.items()
        ),
        *(
            gxe.ExpectColumnPairValuesToBeEqual(
                column_A=fact,
                column_B=f"manifest_{fact}",
                ignore_row_if="either_value_is_missing",
                description=f"{fact} as in the manifest",
            )
            for fact in ("rows", "sha256")
        ),
    ]


def image_expectations(config: Expectations, manifest: Manifest, split: str) -> list[gxe.Expectation]:
    """Return what must hold of the images of `split`."""
    labels, size, count = len(manifest.labels), int(np.prod(manifest.image_shape)), manifest.counts[split]
    expectations: list[gxe.Expectation] = [
        gxe.ExpectTableRowCountToEqual(value=count, description=f"{count} images, as in the manifest"),
        gxe.ExpectTableRowCountToBeBetween(
            min_value=config.min_images, description=f"at least expectations.min_images = {config.min_images} images"
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="label", description="every image has a label"),
        gxe.ExpectColumnValuesToBeInSet(
            column="label", value_set=list(range(labels)), description=f"every label is one of 0 to {labels - 1}"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="pixels",
            value_set=[size],
            description=f"every image has {' x '.join(map(str, manifest.image_shape))} = {size} pixels",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="missing_pixels", value_set=[0], description="no pixel is missing (null or NaN)"
        ),
        gxe.ExpectColumnValuesToBeBetween(column="pixel_min", min_value=0, description="no pixel is below 0"),
        gxe.ExpectColumnValuesToBeBetween(column="pixel_max", max_value=255, description="no pixel is above 255"),
        gxe.ExpectColumnValuesToBeNull(
            column="duplicate_of",
            mostly=1 - config.max_duplicate_share,
            description="no image occurs twice, except for a share of expectations.max_duplicate_share = "
            f"{config.max_duplicate_share}",
        ),
    ]
    if split != list(manifest.counts)[-1]:
        expectations.append(
            gxe.ExpectColumnValuesToBeNull(
                column="also_in",
                mostly=max(0.0, (count - config.max_leaked_images) / count),
                description="no image is in another split too, except for expectations.max_leaked_images = "
                f"{config.max_leaked_images}",
            )
        )
    return expectations


def class_expectations(config: Expectations) -> list[gxe.Expectation]:
    """Return what must hold of every class."""
    return [
        gxe.ExpectColumnValuesToBeBetween(column="images", min_value=1, description="every class has images"),
        gxe.ExpectColumnValuesToBeBetween(
            column="times_fewer",
            max_value=config.max_class_imbalance,
            description="the most frequent class has at most expectations.max_class_imbalance = "
            f"{config.max_class_imbalance} times the images of any other",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="drift",
            max_value=config.max_pixel_drift,
            description="the mean image of each class is at most expectations.max_pixel_drift = "
            f"{config.max_pixel_drift} standard deviations from the recorded baseline",
        ),
    ]
