"""Run a stage inside an MLflow run: the hand-over between stages. The only file that imports mlflow.

`run_stage()` finds the stage's inputs, reuses a FINISHED run with the same fingerprint or opens a nested run, calls the
stage's function on an empty directory, follows its progress, logs what it left, and ends the run. FINISHED is the commit
mark: nothing reads a run that has any other status. One pipeline run is one parent run, found by its name.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import FlyweightError, Interrupted, PromotionError, Skipped
from pipeline.graph import STAGES, Stage
from pipeline.machine import places
from pipeline.progress import events as progress
from pipeline.progress.follow import Event, Follower
from pipeline.settings.schema import Settings
from pipeline.tracking import handover
from pipeline.tracking.handover import EXPERIMENT, TAG, Input

Say = Callable[[str], None]


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: finished, reused, skipped, failed or killed; `reason` says why where it is not plain."""

    stage: str
    run_id: str
    status: str
    reason: str
    url: str
    seconds: float


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
    found = handover.find_inputs(stage, inputs)
    code, why = handover.code_version()
    hashed = handover.fingerprint(stage, settings, found, code) if code else None
    if stage.reusable and not force:
        if hashed is None:
            say(f"[{name}] nothing is reused: {why}")
        elif run := handover.finished_run(hashed):
            return _reuse(stage, run, pipeline, say)
    attempt = _Attempt(stage, settings, found, pipeline, hashed, code, say)
    return attempt.run()


def _reuse(stage: Stage, run: Mapping[str, Any], pipeline: str, say: Say) -> StageResult:
    info = run["info"]
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(info["start_time"] / 1000))
    reason = f"run {info['run_id']} of {day} had the same settings, inputs and code"
    url = handover.run_url(info["run_id"], info["experiment_id"])
    result = StageResult(stage.name, info["run_id"], "reused", reason, url, 0.0)
    say(f"flyweight: run {result.run_id} {url}")
    say(f"[{stage.name}] reused: {reason}")
    _note(open_pipeline(pipeline), result)
    return result


class _Attempt:
    """One attempt at a stage inside its nested run."""

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        inputs: Mapping[str, Input],
        pipeline: str,
        hashed: str | None,
        code: str | None,
        say: Say,
    ) -> None:
        self.stage, self.settings, self.inputs, self.pipeline, self.say = stage, settings, inputs, pipeline, say
        self.hashed = hashed
        self.code = code
        self.client = _client()
        self.parent = open_pipeline(pipeline)
        self.work = places.home() / "work" / (hashed or f"{self.parent}-{stage.name}")
        """Lives until the stage is FINISHED, so that a retry finds its checkpoints."""
        self.out = self.work / "out"

    def run(self) -> StageResult:
        """Call the stage's function; the run is FINISHED only after everything has been logged."""
        run_id, experiment = _open_nested(self.client, self.stage, self.parent, self.pipeline)
        result = StageResult(
            self.stage.name, run_id, "finished", "", handover.run_url(run_id, experiment), seconds=0.0
        )  # fmt: skip
        self.say(f"flyweight: run {run_id} {result.url}")
        begun = time.perf_counter()
        try:
            with _sigterm_raises():
                _log_beginning(self.client, run_id, self.stage, self.settings, self.inputs, self.code)
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
                self._commit(run_id, experiment, result, metrics)
        except BaseException as error:
            status = "killed" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
            seconds = time.perf_counter() - begun
            self._fail(run_id, replace(result, status=status, reason=_sentence(error), seconds=seconds), error)
            raise
        shutil.rmtree(self.work, ignore_errors=True)
        _note(self.parent, result)
        self.say(f"[{self.stage.name}] {result.status} in {result.seconds:.1f} s {result.reason}".rstrip())
        return result

    def _section(self) -> Any:
        return getattr(self.settings, self.stage.section or self.stage.name)

    def _arguments(self, run_id: str, experiment: str) -> dict[str, Any]:
        """Everything that the function takes beside its section."""
        arguments: dict[str, Any] = {
            name: found.directory or _download(found.run_id or "") for name, found in self.inputs.items()
        }
        arguments |= {name: getattr(self.settings, name) for name in self.stage.shared}
        arguments["out"] = self.out
        takes = inspect.signature(_function(self.stage)).parameters
        if "scratch" in takes:
            scratch = self.work / "scratch"
            scratch.mkdir(parents=True, exist_ok=True)
            arguments["scratch"] = scratch
        if "registry" in takes:
            arguments["registry"] = MlflowRegistry(self.client, experiment, run_id)
        return arguments

    @contextlib.contextmanager
    def _watched(self, run_id: str) -> Iterator[None]:
        """System metrics and live progress while the function runs."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        file = self.work / "progress.jsonl"
        file.unlink(missing_ok=True)
        live = places.progress_file(self.pipeline)
        live.parent.mkdir(parents=True, exist_ok=True)

        def on_events(events: list[Event]) -> None:
            with live.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps({"stage": self.stage.name, **event}) + "\n" for event in events)
            _log_curves(self.client, run_id, events)

        os.environ[progress.ENVIRONMENT] = str(file)
        monitor = SystemMetricsMonitor(run_id, sampling_interval=5, resume_logging=True, tracking_uri=places.mlflow())
        follower = Follower(file, self.stage.name, on_events, self.say)
        monitor.start()
        try:
            yield
        finally:
            follower.close()
            monitor.finish()
            del os.environ[progress.ENVIRONMENT]

    def _commit(self, run_id: str, experiment: str, result: StageResult, metrics: Mapping[str, float]) -> None:
        """Log what the function left. The status comes last: it is what makes the rest readable."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {**metrics, "stage_seconds": result.seconds}
        tags: dict[str, str] = {}
        if result.status == "skipped":
            tags = {f"{TAG}skipped": result.reason, f"{TAG}identity": f"skipped: {result.reason}"}
        elif self.hashed:
            tags[f"{TAG}fingerprint"] = self.hashed
        tags |= _tags_from_output(self.out)
        self.client.log_batch(run_id, metrics=[Metric(key, float(value), now, 0) for key, value in numbers.items()])
        self.client.log_artifacts(run_id, str(self.out))
        if (self.out / "candidates.json").is_file():
            _log_models(self.client, experiment, run_id, self.out)
        for key, value in tags.items():
            self.client.set_tag(run_id, key, value)
        self.client.set_terminated(run_id, "FINISHED")

    def _fail(self, run_id: str, result: StageResult, error: BaseException) -> None:
        """End the run. What a `FlyweightError` left is kept to be looked at: a report, the failed expectations."""
        if isinstance(error, FlyweightError):
            self.client.set_tag(run_id, f"{TAG}error", result.reason)
            if self.out.is_dir():
                self.client.log_artifacts(run_id, str(self.out))
        else:
            self.client.set_tag(run_id, f"{TAG}interrupted", result.reason)
        self.client.set_terminated(run_id, "KILLED" if result.status == "killed" else "FAILED")
        _note(self.parent, result)


def open_pipeline(name: str) -> str:
    """Return the id of the parent run of pipeline run `name`; make it where there is none; open it again where it ended."""
    found = handover.search_runs(f"tags.`{TAG}pipeline` = '{name}' and tags.`{TAG}kind` = 'pipeline'", limit=1)
    if found:
        info = found[0]["info"]
        if info["status"] != "RUNNING":
            handover.update_run(info["run_id"], "RUNNING")
        return info["run_id"]
    close_ghosts()
    client = _client()
    run = client.create_run(
        _experiment(client), run_name=name, tags={**_lineage(), f"{TAG}pipeline": name, f"{TAG}kind": "pipeline"}
    )
    return run.info.run_id


def close_pipeline(name: str, complete: bool) -> None:
    """End the parent run, FINISHED if `complete`, else FAILED; nested runs that still say RUNNING become KILLED."""
    parent = open_pipeline(name)
    for run in handover.search_runs(f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"):
        handover.update_run(run["info"]["run_id"], "KILLED")
    handover.update_run(parent, "FINISHED" if complete else "FAILED")


def close_ghosts() -> None:
    """Mark as KILLED every RUNNING run that a process of this machine left behind when it died."""
    for run in handover.search_runs("attributes.status = 'RUNNING'"):
        owner = handover.tags_of(run).get(f"{TAG}process", "")
        if owner and not _is_alive(owner):
            handover.update_run(run["info"]["run_id"], "KILLED")


def log_report(pipeline: str, page: str, summary: str) -> str:
    """Put the evidence page into the parent run and `summary` (Markdown) into its description; return the page's address."""
    client = _client()
    parent = open_pipeline(pipeline)
    client.log_text(parent, page, "report.html")
    client.set_tag(parent, "mlflow.note.content", summary)
    return handover.report_url(parent, _experiment(client))


def log_run(kind: str, parameters: Mapping[str, Any], metrics: Mapping[str, float], directory: Path) -> str:
    """Record what is no stage of a pipeline run, such as a search for serving settings, and return its address.

    The run is FINISHED at once; the files in `directory` become its artifacts. Raises `ConnectionError`.
    """
    from mlflow.entities import Metric, Param

    handover.experiment_id()  # fails at once where MLflow does not answer; its own client tries for minutes
    client = _client()
    experiment = _experiment(client)
    run_id = client.create_run(experiment, run_name=kind, tags={**_lineage(), f"{TAG}kind": kind}).info.run_id
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
        params=[Param(key, str(value)) for key, value in parameters.items()],
    )
    client.log_artifacts(run_id, str(directory))
    client.set_terminated(run_id, "FINISHED")
    return handover.run_url(run_id, experiment)


def registry() -> MlflowRegistry:
    """Return the Model Registry for use outside a stage."""
    client = _client()
    return MlflowRegistry(client, _experiment(client), run_id=None)


class MlflowRegistry:
    """`types.Registry` on MLflow's Model Registry."""

    def __init__(self, client: Any, experiment: str, run_id: str | None) -> None:
        self._client, self._experiment, self._run_id = client, experiment, run_id

    def register(self, name: str, directory: Path, tags: dict[str, str]) -> int:
        """Record the model in `directory` (model.onnx, model.json) as a new version of `name`; return the version."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # it is there already
            self._client.create_registered_model(name)
        model = self._logged_model(directory)
        version = self._client.create_model_version(
            name, source=model.model_uri, run_id=model.source_run_id, tags=tags, model_id=model.model_id
        )
        return int(version.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Make `alias` of the model `name` point at `version`."""
        self._client.set_registered_model_alias(name, alias, str(version))

    def attach(self, name: str, version: int, file: Path) -> None:
        """Put a further file beside those of a version; one of the same name is replaced."""
        source = self._client.get_model_version(name, str(version)).source  # models:/<id of the logged model>
        self._client.log_model_artifact(source.rpartition("/")[2], str(file))

    def fetch(self, name: str, version: int, directory: Path) -> Mapping[str, str]:
        """Put all files of a version into `directory` and return its tags.

        Raises `PromotionError` where there is no such version.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            known = sorted(int(one.version) for one in self._client.search_model_versions(f"name = '{name}'"))
            raise PromotionError(
                f"the registry at {places.mlflow()} has no version {version} of {name}; "
                f"it has: {', '.join(map(str, known)) or 'none'}"
            ) from error
        try:
            download_artifacts(artifact_uri=found.source, dst_path=str(directory), tracking_uri=places.mlflow())
        except (MlflowException, FileNotFoundError) as error:
            raise PromotionError(f"the files of version {version} of {name} cannot be fetched: {error}") from error
        return dict(found.tags)

    def aliases(self, name: str) -> Mapping[str, int]:
        """Return alias -> version of the model `name`; nothing for one that was never registered."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(version) for alias, version in found.aliases.items()}

    def version_with_sha(self, name: str, sha256: str) -> int | None:
        """Return the newest version of `name` that was registered with the tag ``sha256``, or None."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.sha256 = '{sha256}'")
        return max((int(version.version) for version in found), default=None)

    def _logged_model(self, directory: Path) -> Any:
        """The model that `export_onnx` logged with these bytes; logged now where it came from elsewhere."""
        from pipeline.files import sha256

        wanted = sha256(directory / "model.onnx")
        found = self._client.search_logged_models([self._experiment], filter_string=f"tags.sha256 = '{wanted}'")
        return found[0] if found else _log_model(self._client, self._experiment, self._run_id, directory, wanted)


def _client() -> Any:
    for quiet in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(quiet, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    import mlflow

    mlflow.set_tracking_uri(places.mlflow())  # system metrics and model files take it from here
    return mlflow.MlflowClient(places.mlflow())


def _experiment(client: Any) -> str:
    found = handover.experiment_id()
    return found if found is not None else client.create_experiment(EXPERIMENT)


def _open_nested(client: Any, stage: Stage, parent: str, pipeline: str) -> tuple[str, str]:
    """Return (run id, experiment id): the run that a killed or failed attempt left, opened again, or a new one."""
    where = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{TAG}stage` = '{stage.name}'"
    for run in handover.search_runs(where):
        info, tags = run["info"], handover.tags_of(run)
        if info["status"] == "RUNNING" and _is_alive(tags[f"{TAG}process"]):
            raise RuntimeError(f"{stage.name} of {pipeline} is already running as process {tags[f'{TAG}process']}")
        if info["status"] != "FINISHED" and f"{TAG}error" not in tags:
            handover.update_run(info["run_id"], "RUNNING")
            for key, value in _lineage().items():
                handover.set_tag(info["run_id"], key, value)
            return info["run_id"], info["experiment_id"]
    tags = {**_lineage(), "mlflow.parentRunId": parent, f"{TAG}stage": stage.name, f"{TAG}pipeline": pipeline}
    run = client.create_run(_experiment(client), run_name=stage.name, tags=tags)
    return run.info.run_id, run.info.experiment_id


def _lineage() -> dict[str, str]:
    """Tags that say who made a run: this process, the commit, and the Airflow run where there is one."""
    me = psutil.Process()
    tags = {f"{TAG}process": f"{socket.gethostname()}:{me.pid}:{me.create_time():.2f}"}
    if commit := handover.git_commit():
        tags["mlflow.source.git.commit"] = commit
    for key in ("AIRFLOW_RUN_ID", "AIRFLOW_RUN_URL", "AIRFLOW_TRY_NUMBER"):
        if value := os.environ.get(f"FLYWEIGHT_{key}"):
            tags[key.lower().replace("_", ".", 1)] = value
    return tags


def _is_alive(owner: str) -> bool:
    """Whether the process ``host:pid:start time`` lives. One of another machine counts as alive: we cannot know."""
    host, pid, created = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 1.0
    except psutil.NoSuchProcess:
        return False


def _log_beginning(
    client: Any,
    run_id: str,
    stage: Stage,
    settings: Settings,
    inputs: Mapping[str, Input],
    code: str | None,
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    known = client.get_run(run_id).data.params  # an attempt before this one may have logged them; they cannot change
    flat = _flatten(handover.stage_settings(stage, settings))
    client.log_batch(run_id, params=[Param(key, value) for key, value in flat.items() if key not in known])
    client.set_tag(run_id, f"{TAG}code", code or "dirty")
    for name, found in inputs.items():
        client.set_tag(run_id, f"{TAG}input.{name}", found.run_id or str(found.directory))
    if data := inputs.get("data"):
        dataset = Dataset(settings.data.dataset, data.identity[:36], "dvc", json.dumps({"path": str(data.directory)}))
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", stage.name)])])
        if data.run_id:
            tags = handover.tags_of(handover.get_run(data.run_id))
            for key in (f"{TAG}dvc_md5", f"{TAG}dvc_rev"):
                if key in tags:
                    client.set_tag(run_id, key, tags[key])


def _log_curves(client: Any, run_id: str, events: list[Event]) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(name, float(value), int(event["time"] * 1000), int(event["step"]))
        for event in events
        for name, value in event["metrics"].items()
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def _tags_from_output(out: Path) -> dict[str, str]:
    """Lineage that only the stage's function could know."""
    tags: dict[str, str] = {}
    if (out / "data.json").is_file():
        data = json.loads((out / "data.json").read_text(encoding="utf-8"))
        tags[f"{TAG}data"] = data["path"]
        tags |= {f"{TAG}{key}": str(data[key]) for key in ("dvc_md5", "dvc_rev") if data.get(key)}
    if (out / "promotion.json").is_file():
        promotion = json.loads((out / "promotion.json").read_text(encoding="utf-8"))
        tags["triton.model"], tags["triton.version"] = promotion["model"], str(promotion["version"])
        tags["triton.sha256"] = promotion["sha256"]
    return tags


def _log_models(client: Any, experiment: str, run_id: str, out: Path) -> None:
    """Log every candidate as an MLflow model with signature and input example."""
    for candidate in json.loads((out / "candidates.json").read_text(encoding="utf-8"))["candidates"]:
        _log_model(client, experiment, run_id, (out / candidate["file"]).parent, candidate["sha256"])


def _log_model(client: Any, experiment: str, run_id: str | None, directory: Path, sha256: str) -> Any:
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from pipeline.models.spec import load_spec

    spec = load_spec(directory)
    batch = (-1,) if spec.batched else ()

    def schema(tensors: Any) -> Schema:
        return Schema([TensorSpec(np.dtype(t.dtype), (*batch, *t.shape), t.name) for t in tensors])

    model = client.create_logged_model(
        experiment, directory.name, source_run_id=run_id, tags={"sha256": sha256}, model_type="onnx"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.onnx.save_model(
            onnx.load(directory / "model.onnx"),
            str(path),
            signature=ModelSignature(schema(spec.inputs), schema(spec.outputs)),
            input_example={t.name: np.zeros([max(1, n) for n in (*batch, *t.shape)], t.dtype) for t in spec.inputs},
            pip_requirements=["onnxruntime", "numpy"],
            save_as_external_data=False,
        )
        # MLflow writes the graph anew; what may be promoted from here must be the very bytes that were measured.
        for name in ("model.onnx", "model.json"):
            shutil.copyfile(directory / name, path / name)
        client.log_model_artifacts(model.model_id, str(path))
    return client.finalize_logged_model(model.model_id, "READY")


def _download(run_id: str) -> Path:
    """Return a directory with the artifacts of a FINISHED run; fetched once, since they never change."""
    from mlflow.artifacts import download_artifacts

    cached = places.cache() / run_id
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cached.parent))
        download_artifacts(run_id=run_id, dst_path=str(fresh), tracking_uri=places.mlflow())
        fresh.rename(cached)
    return cached


def _function(stage: Stage) -> Callable[..., Mapping[str, float]]:
    return getattr(importlib.import_module(f"pipeline.stages.{stage.name}"), stage.name)


def _note(parent: str, result: StageResult) -> None:
    """Leave on the parent run how the stage ended: the report and the next reader start from there."""
    handover.set_tag(parent, f"{TAG}stage.{result.stage}", json.dumps(asdict(result)))


def _flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(tree, Mapping):
        return {
            key: value
            for name, branch in tree.items()
            for key, value in _flatten(branch, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: str(tree)}


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
