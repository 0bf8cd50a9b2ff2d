"""What Triton itself counts while it is under load: batches formed, time in the queue and at work, CPU and GPU.

From its statistics over gRPC and, for CPU and GPU, from its metrics endpoint where that can be reached. Both only ever
count up or show the moment, so the load of others on the same model is in them too.
"""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from pipeline.machine import places
from pipeline.serving.triton import tls

_SECONDS = 2.0
_GAUGE = re.compile(r"^(nv_cpu_utilization|nv_gpu_utilization)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class ServerSide:
    """Triton's own account of a stretch of time."""

    requests: int
    """Answered."""
    executions: int
    """Batches that the model was given."""
    mean_batch: float
    """Requests per batch, weighted by batches; 0 where there was none."""
    batches: Mapping[int, int]
    """Size -> how many of it were formed."""
    queue_ms: float
    compute_ms: float
    """Mean time of a request in the queue, and in the backend with its copies: what its batch took."""
    cpu: float | None
    gpu: float | None
    """Mean utilisation of the server's machine from 0 to 1; None where Triton does not say."""


@dataclass(frozen=True)
class Snapshot:
    """All counters of a model at one moment, by version."""

    versions: Mapping[str, Mapping[str, int]]
    batches: Mapping[str, Mapping[int, int]]
    cpu: float | None
    gpu: float | None


class Counters:
    """Reads the counters of one model.

    Args:
        model: its name.
        version: of it; all versions together if empty.
        url: ``host:port`` of Triton's gRPC endpoint; its metrics are looked for on the same host.
    """

    def __init__(self, model: str, version: str, url: str) -> None:
        self._model, self._version = model, version
        self._client = triton.InferenceServerClient(url, **tls.client_options())
        self._metrics: str | None = f"http://{url.rpartition(':')[0]}:{places.port('triton_metrics')}/metrics"

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def snapshot(self) -> Snapshot | None:
        """Return what the counters say now; None where Triton gives no statistics."""
        try:
            found = self._client.get_inference_statistics(self._model, self._version, client_timeout=_SECONDS)
        except InferenceServerException:
            return None
        versions, batches = {}, {}
        for stats in found.model_stats:
            took = stats.inference_stats
            versions[stats.version] = {
                "requests": took.success.count,
                "executions": stats.execution_count,
                "queue": took.queue.ns,
                "compute": took.compute_input.ns + took.compute_infer.ns + took.compute_output.ns,
            }
            batches[stats.version] = {batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats}
        gauges = self._gauges()
        return Snapshot(versions, batches, gauges.get("nv_cpu_utilization"), gauges.get("nv_gpu_utilization"))

    def _gauges(self) -> dict[str, float]:
        """Return the mean of each gauge; nothing, from then on, where the endpoint does not answer."""
        if self._metrics is None:
            return {}
        try:
            with urllib.request.urlopen(self._metrics, timeout=_SECONDS) as answer:  # noqa: S310
                return gauges(answer.read().decode())
        except OSError:
            self._metrics = None
            return {}


def gauges(text: str) -> dict[str, float]:
    """Return CPU's and GPUs' utilisation in a page of metrics, the mean over all GPUs."""
    found: dict[str, list[float]] = {}
    for name, value in _GAUGE.findall(text):
        found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}


def between(snapshots: Sequence[Snapshot]) -> ServerSide:
    """Return what happened from the first of `snapshots` to the last; versions that are gone by then are left out."""
    first, last = snapshots[0], snapshots[-1]
    total, batches = Counter[str](), Counter[int]()
    for version, counted in last.versions.items():
        total.update(counted)
        total.subtract(first.versions.get(version, {}))
        batches.update(last.batches[version])
        batches.subtract(first.batches.get(version, {}))
    formed = {size: count for size, count in sorted(batches.items()) if count}
    executions = sum(formed.values())
    requests = max(1, total["requests"])
    return ServerSide(
        requests=total["requests"],
        executions=total["executions"],
        mean_batch=sum(size * count for size, count in formed.items()) / executions if executions else 0.0,
        batches=formed,
        queue_ms=total["queue"] / requests / 1e6,
        compute_ms=total["compute"] / requests / 1e6,
        cpu=_mean([one.cpu for one in snapshots[1:]]),
        gpu=_mean([one.gpu for one in snapshots[1:]]),
    )


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
