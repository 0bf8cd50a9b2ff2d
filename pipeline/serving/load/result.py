"""What a load is, and what was seen under it: requests, failures, latencies, and whether the figures may be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.serving.load import counters
from pipeline.serving.load.counters import ServerSide
from pipeline.serving.load.histogram import Histogram
from pipeline.serving.load.processes import WINDOWS, Seen

_MAXIMUM_BUSY = 0.8
"""Share of a core above which a generator process may be what is measured, so that more are started."""
_SHARES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}


@dataclass(frozen=True)
class Closed:
    """Requests kept in flight."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} in flight"


@dataclass(frozen=True)
class Open:
    """Requests sent at a rate."""

    rate: float
    """Requests per second."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    seed: int = 17

    def __str__(self) -> str:
        return f"{self.rate:g}/s {self.arrivals}"


@dataclass(frozen=True)
class WindowResult:
    """One window of a measurement."""

    throughput: float
    """Good answers that arrived, a second."""
    mean_ms: float
    p99_ms: float
    """Of requests that were due in it."""


@dataclass(frozen=True)
class LoadResult:
    """What was seen in the three windows that count. Latencies are those of answered requests; infinite without any."""

    model: str
    version: str
    load: Closed | Open
    seconds: float
    requests: int
    """That were due: answered and failed ones."""
    failures: int
    errors: Mapping[str, int]
    """gRPC status -> failed requests."""
    throughput: float
    """Good answers per second."""
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    """From when a request was due to the end of its answer; off by less than 0.05 % (`Histogram`)."""
    late_p99_ms: float | None
    """How late requests left: what the generator itself adds to latencies. None in a closed loop, where none is due."""
    client_cpu: float
    """Cores that the load generator took: 0.5 is half of one."""
    processes: int
    """Of the load generator."""
    stable: bool
    windows: tuple[WindowResult, ...]
    """All, also those before the three that count."""
    server: ServerSide | None
    """What Triton itself counted meanwhile; None where it gives no statistics."""

    @property
    def client_bound(self) -> bool:
        """Whether the generator was so busy that the figures may be its own."""
        return self.client_cpu > _MAXIMUM_BUSY * self.processes

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        kind = "closed" if isinstance(self.load, Closed) else "open"
        return {**asdict(self), "load": {"kind": kind, **asdict(self.load)}, "client_bound": self.client_bound}


def of(model: str, version: str, load: Closed | Open, seconds: float, seen: Seen) -> LoadResult:
    """Return what counts of what was `seen` under `load`."""
    window = seconds / WINDOWS
    merged = [_merged(seen.windows[number]) for number in sorted(seen.windows)]
    latencies, errors, answered, busy = Histogram(), Counter[str](), 0, 0.0
    for one in merged[-WINDOWS:]:
        latencies.add(one.latencies)
        errors += one.failures
        answered += one.answered
        busy += one.busy
    percentiles = [value / 1e6 for value in latencies.percentiles(_SHARES.values())]
    failures = errors.total()
    counted: list[Any] = [one for one in seen.snapshots[-WINDOWS - 1 :] if one is not None]
    return LoadResult(
        model=model,
        version=version,
        load=load,
        seconds=seconds,
        requests=len(latencies) + failures,
        failures=failures,
        errors=dict(errors),
        throughput=answered / seconds,
        mean_ms=latencies.mean() / 1e6,
        **dict(zip(_SHARES, percentiles, strict=True)),
        max_ms=latencies.largest / 1e6 if len(latencies) else float("inf"),
        late_p99_ms=seen.late.percentile(0.99) / 1e6 if isinstance(load, Open) else None,
        client_cpu=busy / seconds,
        processes=len(seen.windows[0]),
        stable=seen.stable,
        windows=tuple(
            WindowResult(one.answered / window, one.latencies.mean() / 1e6, one.latencies.percentile(0.99) / 1e6)
            for one in merged
        ),
        server=counters.between(counted) if len(counted) > 1 else None,
    )


@dataclass
class _Merged:
    """A window as all processes together have seen it."""

    latencies: Histogram = field(default_factory=Histogram)
    failures: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    busy: float = 0.0


def _merged(parts: Sequence[Mapping[str, Any]]) -> _Merged:
    whole = _Merged()
    for part in parts:
        whole.latencies.add(Histogram.from_json(part["latencies"]))
        whole.failures.update(part["failures"])
        whole.answered += part["answered"]
        whole.busy += part["busy"]
    return whole
