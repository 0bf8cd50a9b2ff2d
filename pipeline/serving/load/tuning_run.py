"""The search for serving settings on the live Triton server: trial models beside the champion, and the files that result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import FlyweightError, PromotionError, near_miss
from pipeline.machine import places
from pipeline.machine.cpu import cores
from pipeline.records.candidates import MODEL_FILE
from pipeline.serving.load import report, tuning
from pipeline.serving.load.measure import run
from pipeline.serving.load.result import Closed
from pipeline.serving.load.sweep import finite
from pipeline.serving.load.tuning import TUNED, Figures, Trial, Tuning
from pipeline.serving.triton import repository
from pipeline.serving.triton.artifact import from_file, made_up
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.repository import Artifact
from pipeline.serving.triton.temporary import temporary_models
from pipeline.settings.gate import Budget
from pipeline.settings.serving import Promote, Serving

_ROWS = 64
"""Different requests that are sent."""
_WARMUP_SECONDS = 0.3
_LONGEST_NAME = 40


def promoted(model: str) -> Artifact:
    """Return the newest version of `model` that its config names, as an artifact. Raises `FlyweightError`."""
    directory = places.triton_repository() / model
    versions = repository.served_versions(directory)
    file = directory / str(versions[-1]) / MODEL_FILE if versions else directory
    if not file.is_file():
        there = sorted(path.parent.name for path in places.triton_repository().glob(f"*/{repository.CONFIG_FILE}"))
        raise FlyweightError(
            f"{model!r} has not been promoted into {places.triton_repository()}; it holds: {', '.join(there) or 'nothing'}"
            f"{near_miss(model, there)}. Promote it first, or name a file with --onnx"
        )
    return from_file(file)


def search(serving: Serving, budget: Budget, promote: Promote, artifact: Artifact, seconds: float) -> Tuning:
    """Search the best settings for `artifact` under the budget's load, on the server at `places.triton_grpc()`.

    Args:
        serving: the settings as they are.
        budget: how many requests are in flight, and how long p99 may be.
        promote: how long a load may take.
        artifact: the model, loaded under temporary names; what serves is not touched.
        seconds: length of each measurement.

    Raises:
        PromotionError: the model cannot be served with the settings as they are.
        TritonError: the server cannot be reached.
    """
    trial = replace(artifact, candidate="trial")
    inputs = made_up(artifact.spec, _ROWS)
    if not artifact.spec.batched:
        inputs = {name: array[None] for name, array in inputs.items()}

    def measure(name: str) -> Figures:
        return run(name, "", inputs, Closed(budget.at_concurrency), seconds, warmup=_WARMUP_SECONDS)

    with Client() as client:

        @contextlib.contextmanager
        def serve(settings: Sequence[Serving]) -> Iterator[list[str]]:
            with contextlib.ExitStack() as stack:
                names: list[str] = []
                for place, one in enumerate(settings):
                    own = one.model_copy(update={"model": f"{serving.model[:_LONGEST_NAME]}_tune{place}"})
                    models = temporary_models(own, [trial], client, promote.load_timeout_s)
                    try:
                        names += stack.enter_context(models).values()
                    except PromotionError as error:
                        if place == 0:  # what all others differ from
                            raise
                        names.append(f"!{error}")
                yield names

        return tuning.tune(
            serving,
            serve,
            measure,
            cores=cores(),
            concurrency=budget.at_concurrency,
            p99_ms=budget.p99_ms,
            batches=artifact.spec.batched,
        )


def values(serving: Serving) -> dict[str, int]:
    """Return the settings that are searched."""
    return {name: getattr(serving, name) for name in TUNED}


def write(found: Tuning, directory: Path) -> None:
    """Write tuning.json, tuning.md (the table) and tuning.png into `directory`."""
    from pipeline.report import plots

    facts = {
        "load": found.load,
        "sentence": found.sentence,
        "better": found.better,
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "start": values(found.start),
        "best": values(found.best),
        "chosen": values(found.chosen),
        "trials": [_trial(trial) for trial in found.trials],
    }
    (directory / "tuning.json").write_text(
        json.dumps(finite(facts), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    (directory / "tuning.md").write_text(report.tuning_text(found), encoding="utf-8")
    plots.png(report.tuning_figure(found), directory / "tuning.png")


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        **values(trial.serving),
        "scores": trial.scores,
        "throughput": [one.throughput for one in trial.figures],
        "p99_ms": [one.p99_ms for one in trial.figures],
        "refused": trial.refused,
    }
