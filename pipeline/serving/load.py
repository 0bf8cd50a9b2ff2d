"""How many images a served model answers in a second, and how fast, with a set number of requests in flight.

A closed loop: each answer is followed by the next request at once, so the figures say what so many patient clients get,
not what happens when more come than can be served. The loop runs in a process of its own (`closed_loop`) that costs the
server's machine about 10 microseconds of processor time a request; the result says how busy it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from pipeline import places
from pipeline.config import ROOT
from pipeline.serving.client import Client

_SILENCE_SECONDS = 30.0
_MOST_REQUESTS = 256
"""Different images that are sent in turn; more would only fill memory."""


@dataclass(frozen=True)
class LoadResult:
    """What a closed loop has seen after its warm-up."""

    model: str
    version: str
    concurrency: int
    """Requests in flight, one image each."""
    seconds: float
    requests: int
    """Answered and failed ones."""
    failures: int
    errors: Mapping[str, int]
    """gRPC status -> failed requests."""
    throughput: float
    """Answered images per second."""
    p50_ms: float
    p99_ms: float
    """From sending to the end of the answer, exact, of answered requests; infinite where none was."""
    client_cpu: float
    """Share of one core that the load generator took."""


def measure(
    model: str,
    version: str,
    images: NDArray[np.uint8],
    concurrency: int,
    seconds: float,
    url: str | None = None,
    warmup: float = 0.5,
) -> LoadResult:
    """Keep `concurrency` requests of one image each in flight for `seconds`, after `warmup` seconds that do not count.

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
        RuntimeError: the connection was lost or the server fell silent for 30 seconds.
    """
    address = url or places.triton_grpc()
    with Client(address) as client:
        tensor = client.metadata(model, version).inputs[0]
    typed = images[:_MOST_REQUESTS].astype(triton_to_np_dtype(tensor.datatype), copy=False)
    requests = [_request(model, version, tensor.name, tensor.datatype, image[None]) for image in typed]
    plan = {
        "address": address,
        "concurrency": concurrency,
        "seconds": seconds,
        "warmup": warmup,
        "timeout": _SILENCE_SECONDS,
    }
    seen = _run(plan, requests)
    latencies: list[float] = sorted(seen["latencies"])
    failures = sum(seen["failures"].values())
    return LoadResult(
        model=model,
        version=version,
        concurrency=concurrency,
        seconds=seen["seconds"],
        requests=len(latencies) + failures,
        failures=failures,
        errors=seen["failures"],
        throughput=len(latencies) / seen["seconds"],
        p50_ms=percentile(latencies, 0.50) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        client_cpu=seen["client_cpu"],
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of the `ordered` values that at least `share` of them do not exceed; infinity of none."""
    if not ordered:
        return float("inf")
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def _request(model: str, version: str, name: str, datatype: str, image: NDArray) -> bytes:
    """Return a serialised inference request of one image (1, C, H, W)."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    tensor = request.inputs.add(name=name, datatype=datatype)
    tensor.shape.extend(image.shape)
    request.raw_input_contents.append(np.ascontiguousarray(image).tobytes())
    return bytes(request.SerializeToString())


def _run(plan: Mapping[str, object], requests: Sequence[bytes]) -> dict:
    """Run the loop in its own process and return what it printed."""
    with tempfile.TemporaryDirectory(prefix="flyweight-load-") as directory:
        names = [f"{index}.request" for index in range(len(requests))]
        for name, request in zip(names, requests, strict=True):
            (Path(directory) / name).write_bytes(request)
        file = Path(directory) / "plan.json"
        file.write_text(json.dumps({**plan, "messages": names}), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.serving.closed_loop", str(file)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise RuntimeError(f"the load generator could not go on against Triton at {plan['address']}: {last[0]}")
    return dict(json.loads(done.stdout))
