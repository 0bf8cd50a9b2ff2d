"""The numbers that runs are compared by, out of what stages leave: flat, named ``<candidate>_<measure>``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.evaluation.preference import offline_ratio, served_ratio
from pipeline.records.candidates import Candidates
from pipeline.records.engines import Engine
from pipeline.records.evaluation import Evaluation, Measured
from pipeline.records.measures import Interval, Parity, Quality


def export_metrics(listed: Candidates) -> dict[str, float]:
    """Return how large each exported file is and how far from PyTorch; a form for phones is ``<candidate>_mobile``."""
    metrics: dict[str, float] = {}
    for one in listed.candidates:
        found = _export_figures(one.parity, one.size_bytes) | {"parameters": one.parameters, "macs": one.macs}
        metrics |= {f"{one.name}_{measure}": float(value) for measure, value in found.items()}
    for form in listed.mobile:
        found = _export_figures(form.parity, form.size_bytes)
        metrics |= {f"{form.candidate}_mobile_{measure}": float(value) for measure, value in found.items()}
    return metrics


def _export_figures(parity: Parity, size_bytes: int) -> dict[str, float]:
    return {
        "parity_max_difference": parity.max_difference,
        "parity_mean_difference": parity.mean_difference,
        "changed_predictions": parity.changed_predictions,
        "size_bytes": size_bytes,
    }


def engine_metrics(engines: Iterable[Engine]) -> dict[str, float]:
    """Return how long each engine took to build, what it is made of and, where it was run, how right and fast it is."""
    return {
        f"{one.candidate}_{measure}": float(value) for one in engines for measure, value in _engine_figures(one).items()
    }


def _engine_figures(engine: Engine) -> dict[str, float]:
    found: dict[str, float] = {
        "build_seconds": engine.build_seconds,
        "plan_bytes": engine.size_bytes,
        "int8_layers": engine.precisions.get("int8", 0),
        "float16_layers": engine.precisions.get("float16", 0),
    }
    if engine.on_gpu is None:
        return found
    found |= {
        "accuracy": engine.on_gpu.accuracy,
        "accuracy_onnx": engine.on_gpu.accuracy_onnx,
        "parity_max_difference": engine.on_gpu.parity.max_difference,
        "changed_predictions": engine.on_gpu.parity.changed_predictions,
    }
    return found | {f"batch_{batch}_p50_ms": one.p50_ms for batch, one in engine.on_gpu.latency.items()}


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
