"""Run a stage inside an MLflow run: reuse what is there, or run its function, follow it, and keep what it left.

`run_stage()` finds the stage's inputs, reuses a FINISHED run with the same fingerprint or opens a nested run, calls the
stage's function on an empty directory, follows its progress, logs what it left, and ends the run. FINISHED is the commit
mark: nothing reads a run that has any other status.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import FlyweightError, Interrupted, Skipped
from pipeline.graph import STAGES, Stage
from pipeline.machine import places
from pipeline.progress import events
from pipeline.progress.follow import Event, Follower
from pipeline.settings.schema import Settings
from pipeline.tracking import artifacts, rest, runs, stage_run
from pipeline.tracking.client import make_client
from pipeline.tracking.fingerprint import fingerprint
from pipeline.tracking.inputs import Input, check_data, find_inputs
from pipeline.tracking.pipeline_run import StageResult, note, open_pipeline
from pipeline.tracking.registry import MlflowRegistry
from pipeline.tracking.rest import TAG
from pipeline.tracking.system_metrics import SystemMetrics

Say = Callable[[str], None]


def run_stage(
    name: str, settings: Settings, inputs: Mapping[str, str], *, pipeline: str, force: bool = False, say: Say = print
) -> StageResult:
    """Run stage `name`, or reuse a run that did the same, and return how it ended.

    Args:
        name: one of `graph.STAGES`.
        settings: all settings; the stage gets its sections.
        inputs: input name -> run id or directory.
        pipeline: name of the pipeline run: the parent MLflow run, made if need be.
        force: run even where a finished run has the same fingerprint.
        say: gets every line for the person who waits.

    Raises `FlyweightError` where a retry would fail the same way, anything else where it may pass.
    """
    stage = STAGES[name]
    found = find_inputs(stage, inputs)
    hashed = fingerprint(stage, settings, found)
    if stage.reusable and not force and (run := rest.finished_run(hashed)):
        return _reuse(stage, run, pipeline, say)
    return _Attempt(stage, settings, found, pipeline, hashed, say).run()


def _reuse(stage: Stage, run: Mapping[str, Any], pipeline: str, say: Say) -> StageResult:
    info = run["info"]
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(info["start_time"] / 1000))
    reason = f"run {info['run_id']} of {day} had the same settings, inputs and code"
    url = rest.run_url(info["run_id"], info["experiment_id"])
    result = StageResult(stage.name, info["run_id"], "reused", reason, url, 0.0)
    say(f"flyweight: run {result.run_id} {url}")
    say(f"[{stage.name}] reused: {reason}")
    note(open_pipeline(pipeline), result)
    return result


class _Attempt:
    """One attempt at a stage inside its nested run."""

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        inputs: Mapping[str, Input],
        pipeline: str,
        hashed: str,
        say: Say,
    ) -> None:
        self.stage, self.settings, self.inputs, self.pipeline, self.say = stage, settings, inputs, pipeline, say
        self.hashed = hashed
        self.parent = open_pipeline(pipeline)
        self.work = places.home() / "work" / hashed
        """Lives until the stage is FINISHED, so that a retry finds its checkpoints."""
        self.out = self.work / "out"

    def run(self) -> StageResult:
        """Call the stage's function; the run is FINISHED only after everything has been logged."""
        run_id, experiment = stage_run.open_nested(self.stage, self.parent, self.pipeline)
        result = StageResult(
            self.stage.name, run_id, "finished", "", rest.run_url(run_id, experiment), seconds=0.0
        )  # fmt: skip
        self.say(f"flyweight: run {run_id} {result.url}")
        begun = time.perf_counter()
        try:
            with _sigterm_raises():
                stage_run.log_beginning(run_id, self.stage, self.settings, self.inputs)
                self._check_data()
                shutil.rmtree(self.out, ignore_errors=True)
                self.out.mkdir(parents=True)
                try:
                    self.settings.check_arguments(self.stage.settings)
                    with self._watched(run_id):
                        arguments = self._arguments(run_id, experiment)
                        begun = time.perf_counter()
                        metrics = _function(self.stage)(self._section(), **arguments)
                except Skipped as skipped:
                    result, metrics = replace(result, status="skipped", reason=str(skipped)), {}
                result = replace(result, seconds=time.perf_counter() - begun)
                numbers = {**metrics, "stage_seconds": result.seconds}
                stage_run.log_output(experiment, run_id, self.out, numbers, self._tags(result))
        except BaseException as error:
            status = "killed" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
            seconds = time.perf_counter() - begun
            self._fail(run_id, replace(result, status=status, reason=_sentence(error), seconds=seconds), error)
            raise
        shutil.rmtree(self.work, ignore_errors=True)
        note(self.parent, result)
        self.say(f"[{self.stage.name}] {result.status} in {result.seconds:.1f} s {result.reason}".rstrip())
        return result

    def _check_data(self) -> None:
        """The manifest stands for the data in the fingerprint: so nothing may be made from other bytes."""
        data = self.inputs.get("data")
        if data is not None and data.directory is not None and not self.stage.looks_for_damage:
            check_data(data.directory)

    def _section(self) -> Any:
        return getattr(self.settings, self.stage.section or self.stage.name)

    def _arguments(self, run_id: str, experiment: str) -> dict[str, Any]:
        """Everything that the function takes beside its section."""
        arguments: dict[str, Any] = {
            name: found.directory or artifacts.fetched(found.run_id or "") for name, found in self.inputs.items()
        }
        arguments |= {name: getattr(self.settings, name) for name in self.stage.shared}
        arguments["out"] = self.out
        takes = inspect.signature(_function(self.stage)).parameters
        if "scratch" in takes:
            scratch = self.work / "scratch"
            scratch.mkdir(parents=True, exist_ok=True)
            arguments["scratch"] = scratch
        if "registry" in takes:
            arguments["registry"] = MlflowRegistry(make_client(), experiment, run_id)
        return arguments

    @contextlib.contextmanager
    def _watched(self, run_id: str) -> Iterator[None]:
        """System metrics and live progress while the function runs."""
        file = self.work / "progress.jsonl"
        file.unlink(missing_ok=True)
        live = places.progress_file(self.pipeline)
        live.parent.mkdir(parents=True, exist_ok=True)

        def on_events(events: list[Event]) -> None:
            with live.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps({"stage": self.stage.name, **event}) + "\n" for event in events)
            stage_run.log_curves(run_id, events)

        os.environ[events.ENVIRONMENT] = str(file)
        follower = Follower(file, self.stage.name, on_events, self.say)
        try:
            with SystemMetrics(run_id):
                yield
        finally:
            follower.close()
            del os.environ[events.ENVIRONMENT]

    def _tags(self, result: StageResult) -> dict[str, str]:
        """What makes the run one that can be reused; a skipped one is looked at again, since the reason may be gone."""
        if result.status == "skipped":
            return {f"{TAG}skipped": result.reason, f"{TAG}identity": f"skipped: {result.reason}"}
        return {f"{TAG}fingerprint": self.hashed}

    def _fail(self, run_id: str, result: StageResult, error: BaseException) -> None:
        """End the run. What a `FlyweightError` left is kept to be looked at: a report, the failed expectations."""
        if isinstance(error, FlyweightError):
            runs.set_tag(run_id, f"{TAG}error", result.reason)
            if self.out.is_dir():
                artifacts.put(run_id, self.out)
        else:
            runs.set_tag(run_id, f"{TAG}interrupted", result.reason)
        runs.update(run_id, "KILLED" if result.status == "killed" else "FAILED")
        note(self.parent, result)


def _function(stage: Stage) -> Callable[..., Mapping[str, float]]:
    return getattr(importlib.import_module(f"pipeline.stages.{stage.name}"), stage.name)


def _sentence(error: BaseException) -> str:
    return f"{error}" if isinstance(error, FlyweightError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into `Interrupted`, so that the run is ended before the process is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted("told to stop (SIGTERM)")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
