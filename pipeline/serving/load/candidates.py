"""Measure candidates through the live server in turns, so that what slows the machine down hits all of them alike.

Each candidate is served under a temporary name as the winner would be: same backend, same instances, same batching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import TURNS, typical
from pipeline.evaluation.quality import served_parity
from pipeline.models.spec import load_spec
from pipeline.progress.events import report
from pipeline.records.candidates import Candidate
from pipeline.records.evaluation import Measured
from pipeline.records.measures import Interval, Served
from pipeline.runners.candidates import Subjects
from pipeline.serving.load.measure import run
from pipeline.serving.load.result import Closed, LoadResult
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.golden import TOLERANCE
from pipeline.serving.triton.repository import Artifact
from pipeline.serving.triton.temporary import temporary_models
from pipeline.settings.gate import Evaluate
from pipeline.settings.serving import Serving

_PARITY_IMAGES = 64
_WARM_UP_SECONDS = 0.1
"""Before each turn: until the connections are busy. Models are warm after the first answers."""
_TRIES = 3
"""Turns of a busy machine may be over before the first answer; a server that answers nothing this often is an error."""


@dataclass(frozen=True)
class Load:
    """What the live server did with one candidate."""

    served: Mapping[int, Served]
    """By concurrency."""
    answers: NDArray[np.float32]
    """Logits of the first images, (n, classes)."""


@dataclass(frozen=True)
class Loads:
    """What the live server did with all of them."""

    server: str
    """Its version."""
    candidates: Mapping[str, Load]

    def added_to(self, measured: Sequence[Measured], here: Mapping[str, NDArray[np.float32]]) -> tuple[Measured, ...]:
        """Return `measured` with the load that each was under, and its answers beside those of the same file.

        `here` holds, by candidate, what the files answer to the same images in this process, (at least n, classes).
        """
        return tuple(
            one.model_copy(
                update={
                    "served": load.served,
                    "served_parity": served_parity(load.answers, here[one.name], TOLERANCE),
                }
            )
            if (load := self.candidates.get(one.name))
            else one
            for one in measured
        )


def measure_candidates(
    config: Evaluate, serving: Serving, subjects: Subjects, candidates: Sequence[Candidate]
) -> Loads:
    """Load all candidates into the live server under temporary names and measure them in turns.

    Args:
        config: concurrencies, seconds of each measurement, level of the intervals.
        serving: how Triton serves each candidate.
        subjects: where the candidates' files are, and the images that are sent in turn.
        candidates: which of them are measured.

    Raises:
        PromotionError: a candidate cannot be loaded.
        TritonError: the server cannot be reached.
        RuntimeError: it answers nothing.
    """
    files = [(subjects.directory / one.file, one) for one in candidates]
    artifacts = [Artifact(file, load_spec(file.parent), one.sha256, one.name) for file, one in files]
    images = subjects.sample_images
    with Client() as client, temporary_models(serving, artifacts, client) as names:
        few = images[: min(_PARITY_IMAGES, serving.max_batch_size)]
        answers = {name: client.predict(model, few) for name, model in names.items()}
        inputs = {name: {client.metadata(model).inputs[0].name: images} for name, model in names.items()}
        served: dict[str, dict[int, Served]] = {name: {} for name in names}
        for place, level in enumerate(config.concurrency):
            turns: dict[str, list[LoadResult]] = {name: [] for name in names}
            for number in range(TURNS):
                for name in list(names)[:: -1 if number % 2 else 1]:
                    turns[name].append(_turn(name, names[name], inputs[name], level, config.load_seconds, turns[name]))
                report("load through Triton", done=place * TURNS + number + 1, total=len(config.concurrency) * TURNS)
            for name, found in turns.items():
                served[name][level] = summary(found, config.confidence)
        return Loads(client.server_version(), {name: Load(served[name], answers[name]) for name in names})


def summary(turns: Sequence[LoadResult], confidence: float) -> Served:
    """Return what a candidate's turns say together; each must have answers."""
    throughput = typical([turn.throughput for turn in turns], confidence)
    p99 = typical([turn.p99_ms for turn in turns], confidence)
    return Served(
        throughput=throughput.value,
        interval=Interval(low=throughput.low, high=throughput.high),
        turns=tuple(turn.throughput for turn in turns),
        p50_ms=typical([turn.p50_ms for turn in turns], confidence).value,
        p99_ms=p99.value,
        p99_interval=Interval(low=p99.low, high=p99.high),
        requests=sum(turn.requests for turn in turns),
        failures=sum(turn.failures for turn in turns),
        client_cpu=float(np.mean([turn.client_cpu for turn in turns])),
    )


def _turn(
    name: str,
    model: str,
    inputs: Mapping[str, NDArray],
    level: int,
    load_seconds: float,
    before: Sequence[LoadResult],
) -> LoadResult:
    """Measure one turn with as many generator processes as the turns before needed. Raises `RuntimeError`."""
    processes = before[-1].processes if before else None
    for _ in range(_TRIES):
        found = run(model, "", inputs, Closed(level), load_seconds / TURNS, None, _WARM_UP_SECONDS, 0, processes)
        if found.throughput > 0 and np.isfinite(found.p99_ms):
            return found
    errors = ", ".join(f"{count} x {status}" for status, count in found.errors.items())
    raise RuntimeError(
        f"Triton answered none of {found.requests} requests to {name} with {level} in flight within {_TRIES} turns of "
        f"evaluate.load_seconds / {TURNS} = {load_seconds / TURNS:g} s ({errors or 'no errors'}); see its log"
    )
