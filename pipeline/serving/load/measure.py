"""How many requests a served model answers in a second, and how fast: load from processes of its own, honestly measured.

Two kinds of load: `Closed` keeps a number of requests in flight, `Open` sends at a rate whatever comes back. Either runs in
`pipeline.serving.load.generator`, which costs the server's machine some tens of microseconds of processor time a request; more
such processes are started where one was not enough. A measurement is three windows after a warm-up. It is stable when
neither throughput nor mean latency of the three differ by more than 10 %, as NVIDIA's perf_analyzer has it; with
patience it goes on until they do.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from pipeline.errors import FlyweightError
from pipeline.machine import places, workspace
from pipeline.serving.load import closed_loop, counters, open_loop
from pipeline.serving.load.counters import ServerSide
from pipeline.serving.load.histogram import Histogram
from pipeline.serving.triton import tls
from pipeline.serving.triton.client import Client

WINDOWS = 3
"""Windows of a measurement, and of the stability check."""
LARGEST_SPREAD = 1.1
"""Largest ratio of the windows' extremes that still counts as stable."""
_SILENCE_SECONDS = 30.0
_MOST_REQUESTS = 256
"""Different requests that are sent in turn; more would only fill memory."""
_MOST_BUSY = 0.8
"""Share of a core above which a generator process may be what is measured, so that more are started."""
_SHARES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}
Watch: TypeAlias = Callable[[float], None]
"""Told after each window what share of the measurement is behind us."""


class LoadError(RuntimeError):
    """The load generator could not go on: the connection was lost, or the server fell silent."""


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
    """Requests a second."""
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
    """Good answers a second."""
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
        return self.client_cpu > _MOST_BUSY * self.processes

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        kind = "closed" if isinstance(self.load, Closed) else "open"
        return {**asdict(self), "load": {"kind": kind, **asdict(self.load)}, "client_bound": self.client_bound}


def measure(
    model: str,
    version: str,
    images: NDArray[np.uint8],
    concurrency: int,
    seconds: float,
    url: str | None = None,
    warmup: float = 0.5,
) -> LoadResult:
    """Keep `concurrency` requests of one image each in flight: `run` for the first input of a model.

    Args:
        model: its name in Triton.
        version: of the model; the highest that is served if empty.
        images: (M, C, H, W); the first 256 are sent in turn.
        concurrency: requests in flight, over one connection for every 16.
        seconds: length of the measurement.
        url: ``host:port`` of Triton's gRPC endpoint.
        warmup: seconds before counting starts.

    Raises:
        TritonError: the model is not there.
        LoadError: the connection was lost or the server fell silent for 30 seconds.
    """
    address = url or places.triton_grpc()
    with Client(address) as client:
        name = client.metadata(model, version).inputs[0].name
    return run(model, version, {name: images}, Closed(concurrency), seconds, address, warmup)


def run(
    model: str,
    version: str,
    inputs: Mapping[str, NDArray],
    load: Closed | Open,
    seconds: float,
    url: str | None = None,
    warmup: float = 0.5,
    patience: int = 0,
    processes: int | None = None,
    watch: Watch | None = None,
) -> LoadResult:
    """Put `load` on a model for `warmup` and then `seconds`, and for more where `patience` allows it and it is unstable.

    Args:
        model: its name in Triton.
        version: of the model; the highest that is served if empty.
        inputs: name -> (M, ...), one row a request, cast to what the model takes; the first 256 rows are sent in turn.
        load: what is sent when.
        seconds: length of the measurement: of its three windows together.
        url: ``host:port`` of Triton's gRPC endpoint.
        warmup: seconds before counting starts.
        patience: further windows that may pass until the last three are stable.
        processes: of the generator; None starts with one and doubles them until they have time to spare.
        watch: is told how far it is.

    Raises:
        TritonError: the model is not there.
        LoadError: the connection was lost or the server fell silent for 30 seconds.
    """
    address = url or places.triton_grpc()
    with Client(address) as client:
        metadata = client.metadata(model, version)
    requests = _requests(model, version, metadata.inputs, inputs)
    plan = {
        "address": address,
        "window": int(seconds * 1e9 / WINDOWS),
        "windows": WINDOWS + patience,
        "warmup": int(warmup * 1e9),
        "silence": _SILENCE_SECONDS,
        "tls": tls.client_options(),
    }
    most = _most_processes(load)
    count = processes or 1
    with counters.Counters(model, version, address) as triton:
        while True:
            seen = drive([{**plan, **share} for share in _shares(load, count)], requests, triton.snapshot, watch)
            result = _result(model, version, load, seconds, seen)
            if processes or not result.client_bound or 2 * count > most:
                return result
            count *= 2


@dataclass(frozen=True)
class Seen:
    """What the generator's processes have seen together, and what was read of the server at the windows' ends."""

    windows: Mapping[int, list[Mapping[str, Any]]]
    """By number: what each process says of it."""
    late: Histogram
    stable: bool
    snapshots: Sequence[Any]
    """Before the first window and after each."""


def drive(
    plans: Sequence[Mapping[str, Any]],
    requests: Sequence[bytes],
    snapshot: Callable[[], Any] = lambda: None,
    watch: Watch | None = None,
    until_stable: bool = True,
) -> Seen:
    """Run one generator process a plan, side by side, until the last windows are stable or the plans end.

    Args:
        plans: what each process is to do. One with a ``program`` is run by that Python file in the generator's place,
            which must read and print the same lines.
        requests: what is sent in turn.
        snapshot: is called at the beginning of the first window and at each window's end.
        watch: is told how far it is.
        until_stable: whether stable windows end it early.
    """
    last, window = int(plans[0]["windows"]), float(plans[0]["window"])
    with _generators(plans, requests) as generators:
        begin = time.perf_counter_ns() + 1_000_000
        for generator in generators:
            generator.tell(f"{begin}\n")
        recent: list[tuple[float, float]] = []
        snapshots = []
        for number in range(-1, last):
            lines = [generator.read() for generator in generators]
            snapshots.append(snapshot())
            if number < 0:
                continue
            answered = sum(line["answered"] for line in lines)
            recent.append((answered / window, sum(line["waited"] for line in lines) / max(1, answered)))
            if watch:
                watch((number + 1) / last)
            if until_stable and is_stable(recent):
                break
        for generator in generators:
            generator.tell(None)
        found = [generator.read() for generator in generators]
    if watch:
        watch(1.0)
    late = Histogram()
    for one in found:
        late.add(Histogram.from_json(one["late"]))
    windows = {number: [one["windows"][str(number)] for one in found] for number in range(len(recent))}
    return Seen(windows, late, is_stable(recent), snapshots)


def is_stable(windows: Sequence[tuple[float, ...]]) -> bool:
    """Return whether each figure of the last three windows stays within `LARGEST_SPREAD`; never for fewer.

    So does perf_analyzer
    (https://github.com/triton-inference-server/perf_analyzer/blob/main/docs/measurements_metrics.md).
    """
    last = windows[-WINDOWS:]
    if len(last) < WINDOWS:
        return False
    return all(min(figure) > 0 and max(figure) <= LARGEST_SPREAD * min(figure) for figure in zip(*last, strict=True))


def zeros(metadata: Any) -> dict[str, NDArray]:
    """Return one request's inputs of zeros, (1, ...) each, for a model of this metadata; free axes are 1 long.

    Raises `FlyweightError` for inputs of text.
    """
    made = {}
    for tensor in metadata.inputs:
        if tensor.datatype == "BYTES":
            raise FlyweightError(
                f"{metadata.name} takes text as {tensor.name!r}; the load generator sends numbers and images only"
            )
        shape = [max(1, size) for size in tensor.shape]
        made[tensor.name] = np.zeros((1, *shape[1:]) if tensor.shape[0] < 0 else (1, *shape), _type(tensor.datatype))
    return made


def _type(datatype: str) -> Any:
    return np.uint16 if datatype == "BF16" else triton_to_np_dtype(datatype)


def _requests(model: str, version: str, tensors: Sequence[Any], inputs: Mapping[str, NDArray]) -> list[bytes]:
    """Return serialised inference requests of one row each."""
    rows = min(_MOST_REQUESTS, *(len(rows) for rows in inputs.values()))
    made = []
    for row in range(rows):
        request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
        for tensor in tensors:
            array = inputs[tensor.name][row].astype(_type(tensor.datatype), copy=False)
            batched = array[None] if tensor.shape and tensor.shape[0] < 0 else array
            request.inputs.add(name=tensor.name, datatype=tensor.datatype).shape.extend(batched.shape)
            request.raw_input_contents.append(np.ascontiguousarray(batched).tobytes())
        made.append(bytes(request.SerializeToString()))
    return made


def _most_processes(load: Closed | Open) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, load.concurrency) if isinstance(load, Closed) else cores


def _shares(load: Closed | Open, processes: int) -> list[dict[str, Any]]:
    """Return what each of `processes` must do so that together they are `load`."""
    shares: list[dict[str, Any]] = []
    for place in range(processes):
        if isinstance(load, Closed):
            own = load.concurrency // processes + (place < load.concurrency % processes)
            shares.append({"loop": "closed", "concurrency": own, "connections": closed_loop.connections(own)})
        else:
            own_part = {"place": place, "of": processes, "connections": open_loop.CONNECTIONS}
            shares.append({"loop": "open", **asdict(load), **own_part})
    return shares


def _result(model: str, version: str, load: Closed | Open, seconds: float, seen: Seen) -> LoadResult:
    """Put together what counts."""
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


class _Generator:
    """One process of the load generator."""

    def __init__(self, plan_file: Path, address: str, program: str | None) -> None:
        self._address, self._errors = address, plan_file.with_suffix(".errors")
        path = os.pathsep.join([str(workspace.SOURCE), os.environ.get("PYTHONPATH", "")])
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *([program] if program else ["-m", "pipeline.serving.load.generator"]),
                    str(plan_file),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )

    def read(self) -> dict[str, Any]:
        """Return the next line. Raises `LoadError` where the process ended instead."""
        out: IO[str] = self._process.stdout  # type: ignore[assignment]
        line = out.readline()
        if not line:
            last = self._errors.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no reason given"]
            raise LoadError(f"the load generator could not go on against Triton at {self._address}: {last[0]}")
        return dict(json.loads(line))

    def tell(self, line: str | None) -> None:
        """Send a line; None says that it is enough."""
        into = self._process.stdin
        if into is None:
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended: `read` says why
            if line is None:
                self._process.stdin = None
                into.close()
            else:
                into.write(line)
                into.flush()

    def end(self) -> None:
        """Let it wait for its last answers (a client that goes away can crash Triton) and end."""
        self.tell(None)
        try:
            self._process.communicate(timeout=_SILENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def _generators(plans: Sequence[Mapping[str, Any]], requests: Sequence[bytes]) -> Iterator[list[_Generator]]:
    """Start one connected process a plan; none is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="flyweight-load-") as directory, contextlib.ExitStack() as stack:
        names = [f"{index}.request" for index in range(len(requests))]
        for name, request in zip(names, requests, strict=True):
            (Path(directory) / name).write_bytes(request)
        generators = []
        for place, plan in enumerate(plans):
            file = Path(directory) / f"{place}.json"
            file.write_text(json.dumps({**plan, "messages": names}), encoding="utf-8")
            generators.append(_Generator(file, str(plan["address"]), plan.get("program")))
            stack.callback(generators[-1].end)
        for generator in generators:
            generator.read()
        yield generators
