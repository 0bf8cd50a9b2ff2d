"""Settings of the data: which data set, how it is split, what it must look like."""

from __future__ import annotations

from pydantic import Field

from pipeline.settings.base import Fraction, PositiveInt, Section


class Data(Section):
    """Which data set a run uses."""

    dataset: str = Field("fashion_mnist", description="Data set to use: a name under 'datasets'.")


class DatasetSplit(Section):
    """How one data set is split. DVC pins these: they are read from params.yaml alone."""

    validation_images: PositiveInt = Field(description="Training images set aside for validation, stratified by class.")
    split_seed: int = Field(17, ge=0, description="Seed of the split.")


class Expectations(Section):
    """What `validate` holds the data to."""

    min_images: PositiveInt = Field(100, description="Minimum number of images per split.")
    max_class_imbalance: float = Field(
        2.0, ge=1.0, description="Maximum ratio of the most to the least frequent class of a split."
    )
    max_duplicate_share: Fraction = Field(
        0.001, description="Maximum share of exact duplicates inside a split; 0 allows none."
    )
    max_leaked_images: int = Field(
        0, ge=0, description="Maximum number of images of one split that may occur in another."
    )
    max_pixel_drift: float = Field(
        0.25,
        gt=0.0,
        description="Maximum change of a class's mean pixel against the baseline, in baseline standard deviations.",
    )
