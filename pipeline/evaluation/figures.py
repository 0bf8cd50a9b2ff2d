"""The numbers that runs are compared by, out of an evaluation: flat, named ``<candidate>_<measure>``."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.evaluation.preference import offline_ratio, served_ratio
from pipeline.records.evaluation import Evaluation, Measured
from pipeline.records.measures import Interval, Quality


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers that runs are compared by, named ``<candidate>_<measure>``."""
    return {
        f"{one.name}_{measure}": float(value)
        for one in evaluation.candidates
        for measure, value in _figures(one, evaluation.teacher, evaluation.confidence).items()
    }


def _figures(one: Measured, teacher: Measured, confidence: float) -> Mapping[str, float]:
    found: dict[str, float] = {"size_bytes": one.size_bytes, "parameters": one.parameters, "macs": one.macs}
    found["size_ratio"] = teacher.size_bytes / one.size_bytes
    found |= _quality("validation", one.validation) | _quality("test", one.test)
    for batch, offline in one.offline.items():
        found |= _speed(f"offline_images_per_second_b{batch}", offline.images_per_second, offline.interval)
        found[f"offline_p99_ms_b{batch}"] = offline.p99_ms
    for level, served in one.served.items():
        found |= _speed(f"served_throughput_c{level}", served.throughput, served.interval)
        found[f"served_p99_ms_c{level}"] = served.p99_ms
    if one.offline:
        speedup = offline_ratio(one, teacher, confidence)
        found |= {"speedup": speedup.value, "speedup_lower": speedup.low}
    if one.served:
        speedup = served_ratio(one, teacher, confidence)
        found |= {"served_speedup": speedup.value, "served_speedup_lower": speedup.low}
    return found


def _quality(split: str, quality: Quality | None) -> dict[str, float]:
    if quality is None:
        return {}
    found = {"accuracy": quality.accuracy.value, "ece": quality.ece, "nll": quality.nll}
    found |= {"agreement": quality.agreement, "churn": quality.churn}
    if quality.drop:
        found |= {"drop": quality.drop.value, "drop_upper": quality.drop.high}
    return {f"{split}_{name}": value for name, value in found.items()}


def _speed(name: str, value: float, interval: Interval | None) -> dict[str, float]:
    return {name: value} | ({f"{name}_lower": interval.low, f"{name}_upper": interval.high} if interval else {})
