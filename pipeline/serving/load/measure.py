"""How many requests a served model answers in a second, and how fast: load from processes of its own, honestly measured.

Two kinds of load: `Closed` keeps a number of requests in flight, `Open` sends at a rate whatever comes back. Either runs in
`pipeline.serving.load.generator`, which costs the server's machine some tens of microseconds of processor time per request; more
such processes are started where one was not enough. A measurement is three windows after a warm-up. It is stable when
neither throughput nor mean latency of the three differ by more than 10 %, as NVIDIA's perf_analyzer has it; with
patience it goes on until they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.machine import places
from pipeline.machine.cpu import cores
from pipeline.serving.load import closed_loop, counters, open_loop, requests, result
from pipeline.serving.load.processes import SILENCE_SECONDS, WINDOWS, Watch, drive
from pipeline.serving.load.result import Closed, LoadResult, Open
from pipeline.serving.triton import tls
from pipeline.serving.triton.client import Client


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
        inputs: name -> (M, ...), one row per request, cast to what the model takes; the first 256 rows are sent in turn.
        load: what is sent when.
        seconds: length of the measurement: of its three windows together.
        url: ``host:port`` of Triton's gRPC endpoint.
        warmup: seconds before counting starts.
        patience: further windows that may pass until the last three are stable.
        processes: of the generator; None starts with one and doubles them until they have time to spare.
        watch: is called with how far it is.

    Raises:
        TritonError: the model is not there.
        LoadError: the connection was lost or the server fell silent for 30 seconds.
    """
    address = url or places.triton_grpc()
    with Client(address) as client:
        metadata = client.metadata(model, version)
    messages = requests.serialised(model, version, metadata.inputs, inputs)
    plan = {
        "address": address,
        "window": int(seconds * 1e9 / WINDOWS),
        "windows": WINDOWS + patience,
        "warmup": int(warmup * 1e9),
        "silence": SILENCE_SECONDS,
        "tls": tls.client_options(),
    }
    maximum = _maximum_processes(load)
    count = processes or 1
    with counters.Counters(model, version, address) as triton:
        while True:
            seen = drive([{**plan, **share} for share in _shares(load, count)], messages, triton.snapshot, watch)
            found = result.of(model, version, load, seconds, seen)
            if processes or not found.client_bound or 2 * count > maximum:
                return found
            count *= 2


def _maximum_processes(load: Closed | Open) -> int:
    return min(cores(), load.concurrency) if isinstance(load, Closed) else cores()


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
