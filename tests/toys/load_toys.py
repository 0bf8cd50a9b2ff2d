"""Measurements under load that were never made."""

from pipeline.serving.load.counters import ServerSide
from pipeline.serving.load.result import Closed, LoadResult, Open, WindowResult


def result(load: Closed | Open, throughput: float, mean_ms: float, **changes) -> LoadResult:
    facts = {
        **{"model": "proxy", "version": "", "load": load, "seconds": 3.0, "requests": int(3 * throughput)},
        **{"failures": 0, "errors": {}, "throughput": throughput, "mean_ms": mean_ms, "p50_ms": mean_ms},
        **{"p90_ms": 2 * mean_ms, "p95_ms": 2 * mean_ms, "p99_ms": 3 * mean_ms, "p999_ms": 4 * mean_ms},
        **{"max_ms": 5 * mean_ms, "late_p99_ms": None, "client_cpu": 0.1, "processes": 1, "stable": True},
        "windows": (WindowResult(throughput, mean_ms, 3 * mean_ms),) * 3,
        "server": ServerSide(int(3 * throughput), 10, 2.0, {2: 10}, 0.1, 0.4, 0.9, None),
    }
    return LoadResult(**{**facts, **changes})


CURVE = [(100.0, 1.0), (180.0, 1.1), (200.0, 4.0), (200.0, 40.0)]
