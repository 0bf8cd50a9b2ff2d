"""What can be measured of a model: accuracy, time, throughput, parity; one typed class each.

Accuracies, drops and shares are fractions, not per cent; times are milliseconds where the name ends in `_ms`.
"""

from __future__ import annotations

from pipeline.records.record import Record


class Estimate(Record):
    """A measured value and the interval around it, at `Evaluation.confidence`."""

    value: float
    low: float
    high: float


class ReliabilityBin(Record):
    """The images whose highest probability fell into one of 15 equal bins."""

    confidence: float
    accuracy: float
    images: int


class Quality(Record):
    """How right a candidate is on one split, and how it differs from the teacher there."""

    images: int
    accuracy: Estimate
    drop: Estimate | None = None
    """Teacher's accuracy minus this one's, paired image by image; None for the teacher itself."""
    mcnemar_p: float | None = None
    """Probability of disagreement this one-sided or more, were both equally accurate (exact McNemar test)."""
    agreement: float
    """Share of images that get the teacher's answer."""
    churn: float
    """Share of images that the teacher gets right and this one wrong."""
    ece: float
    nll: float
    recall: tuple[float | None, ...]
    """One a label; None where the split has no image of it."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by [true label][predicted label]."""
    reliability: tuple[ReliabilityBin, ...]


class Interval(Record):
    """Where a value lies, at `Evaluation.confidence`."""

    low: float
    high: float


class Offline(Record):
    """One runner at one batch size, in-process, on one thread."""

    images_per_second: float
    """Of the typical turn; each turn's is the batch size over the median time of a call."""
    interval: Interval | None = None
    """Of `images_per_second`, from the turns."""
    turns: tuple[float, ...] = ()
    """Images per second, one per turn; the turns of one place belong together in time."""
    p50_ms: float
    p99_ms: float
    calls: int


class Served(Record):
    """The live Triton endpoint with so many requests in flight, one image each."""

    throughput: float
    """Answered images per second, in the typical turn."""
    interval: Interval | None = None
    """Of `throughput`, from the turns."""
    turns: tuple[float, ...] = ()
    """Answered images per second, one per turn; the turns of one place belong together in time."""
    p50_ms: float
    p99_ms: float
    """Of the typical turn, as `p50_ms` is."""
    p99_interval: Interval | None = None
    """Of `p99_ms`, from the turns."""
    requests: int
    failures: int
    client_cpu: float | None = None
    """Share of one core that the load generator took from the server's machine."""


class Parity(Record):
    """How far one runner's answers are from another's, such as an exported file's from those of its PyTorch model."""

    images: int
    max_difference: float
    """Largest absolute difference of any logit."""
    mean_difference: float
    changed_predictions: int
    """Images whose most likely class is another one."""


class ServedParity(Record):
    """Triton's answers beside those of the same file run in this process."""

    images: int
    max_difference: float
    differing: int
    """Images whose logits differ by more than rounding."""
