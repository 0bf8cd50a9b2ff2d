"""run_stage against a real MLflow server: commit, reuse, failure, a killed process, a retry."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types

import pytest

from pipeline.errors import FlyweightError, Interrupted, Skipped
from pipeline.graph import Stage
from pipeline.progress import events
from pipeline.settings import parse
from pipeline.tracking import artifacts, evidence, inputs, pipeline_run, rest
from pipeline.tracking import stage as tracking
from pipeline.tracking.other_run import log_run

pytestmark = pytest.mark.integration


@pytest.fixture
def stage(mlflow_server, monkeypatch, tmp_path):
    """A stage of our own making in the graph: `stage(function)` returns a call of run_stage on it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLYWEIGHT_CODE_VERSION", tmp_path.name)
    settings = parse.parse({})

    def use(function, **options):
        monkeypatch.setitem(tracking.STAGES, "fake", Stage("fake", "A test.", "prove", section="expectations"))
        monkeypatch.setitem(sys.modules, "pipeline.stages.fake", types.SimpleNamespace(fake=function))
        lines: list[str] = []
        call = {"pipeline": "p-" + tmp_path.name, "say": lines.append, **options}
        return tracking.run_stage("fake", settings, {}, **call), lines

    monkeypatch.setattr(tracking, "STAGES", dict(tracking.STAGES))
    return use


def test_a_finished_stage_is_committed_with_all_it_left(stage):
    def work(config, *, out):
        assert list(out.iterdir()) == []
        (out / "answer.json").write_text("42")
        for step in range(3):
            events.report("steps", done=step + 1, total=3, loss=3.0 - step)
        return {"accuracy": 0.5}

    result, lines = stage(work)
    assert result.status == "finished"
    assert lines[0] == f"flyweight: run {result.run_id} {result.url}"
    run = rest.get_run(result.run_id)
    assert run["info"]["status"] == "FINISHED"
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert metrics["accuracy"] == 0.5
    assert metrics["loss"] == 1.0
    assert {"key": "expectations.min_images", "value": "100"} in run["data"]["params"]
    assert artifacts.read(result.run_id, "answer.json") == b"42"
    assert artifacts.read(result.run_id, "none.json") is None
    parent = rest.get_run(rest.tags_of(run)["mlflow.parentRunId"])
    assert json.loads(rest.tags_of(parent)["flyweight.stage.fake"])["status"] == "finished"


def test_the_same_again_is_reused_and_force_runs_it(stage):
    calls = []

    def work(config, *, out):
        calls.append(1)
        return {}

    first, _ = stage(work)
    second, lines = stage(work, pipeline="another")
    third, _ = stage(work, force=True)
    assert (second.status, second.run_id) == ("reused", first.run_id)
    assert "had the same settings, inputs and code" in lines[-1]
    assert third.run_id != first.run_id
    assert len(calls) == 2


def test_a_mendable_failure_keeps_its_evidence_and_is_never_reused(stage):
    def work(config, *, out):
        (out / "verdict.json").write_text("{}")
        raise FlyweightError("INFEASIBLE: too slow")

    ids = []
    for _ in range(2):
        with pytest.raises(FlyweightError, match="too slow"):
            stage(work)
        parent = evidence.find_parent("latest")
        ids.append(json.loads(rest.tags_of(parent)["flyweight.stage.fake"])["run_id"])
    assert ids[0] != ids[1]
    run = rest.get_run(ids[0])
    assert run["info"]["status"] == "FAILED"
    assert rest.tags_of(run)["flyweight.error"] == "INFEASIBLE: too slow"
    assert artifacts.read(ids[0], "verdict.json") == b"{}"
    with pytest.raises(FlyweightError, match="that run is FAILED; only a FINISHED run can be an input"):
        inputs.find_inputs(Stage("next", "", "prove", inputs={"x": "fake"}), {"x": ids[0]})


def test_a_skipped_stage_says_why_and_is_looked_at_again(stage):
    def work(config, *, out):
        raise Skipped("no GPU here")

    first, _ = stage(work)
    second, _ = stage(work)
    assert first.status == second.status == "skipped"
    assert first.run_id != second.run_id
    found = inputs.find_inputs(Stage("next", "", "prove", inputs={"x": "fake"}), {"x": first.run_id})
    assert found["x"].identity == "skipped: no GPU here"  # so what comes after may still be reused


def test_a_retry_opens_the_same_run_and_finds_its_checkpoint(stage):
    def breaks(config, *, out, scratch):
        (scratch / "epoch-1").write_text("kept")
        (out / "half").write_text("written")
        raise OSError("a passing fault")

    def works(config, *, out, scratch):
        assert (scratch / "epoch-1").read_text() == "kept"
        assert list(out.iterdir()) == []
        return {}

    with pytest.raises(OSError, match="passing"):
        stage(breaks)
    failed = json.loads(rest.tags_of(evidence.find_parent("latest"))["flyweight.stage.fake"])
    result, _ = stage(works)
    assert result.run_id == failed["run_id"]
    assert rest.get_run(result.run_id)["info"]["status"] == "FINISHED"
    assert artifacts.read(result.run_id, "half") is None


def test_a_killed_process_leaves_no_ghost(stage, tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys, types
        from pipeline.settings import parse
        from pipeline.tracking import stage as tracking
        from pipeline.graph import Stage
        def fake(config, *, out):
            os.kill(os.getpid(), signal.SIGKILL)
        tracking.STAGES["fake"] = Stage("fake", "A test.", "prove", section="expectations")
        sys.modules["pipeline.stages.fake"] = types.SimpleNamespace(fake=fake)
        tracking.run_stage("fake", parse.parse({}), {}, pipeline="ghost")
    """)
    done = subprocess.run([sys.executable, "-u", "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run_id = done.stdout.split()[2]
    assert rest.get_run(run_id)["info"]["status"] == "RUNNING"
    again, _ = stage(lambda config, *, out: {}, pipeline="ghost")
    assert again.run_id == run_id  # the retry continues the run that the dead process left
    assert rest.get_run(run_id)["info"]["status"] == "FINISHED"
    pipeline_run.close_pipeline("ghost", complete=True)
    assert rest.search_runs("attributes.status = 'RUNNING' and tags.`flyweight.pipeline` = 'ghost'") == []


def test_a_stage_that_is_told_to_stop_ends_its_run(stage):
    def work(config, *, out):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(Interrupted):
        stage(work)
    note = json.loads(rest.tags_of(evidence.find_parent("latest"))["flyweight.stage.fake"])
    assert note["status"] == "killed"
    assert rest.get_run(note["run_id"])["info"]["status"] == "KILLED"


def test_what_is_no_stage_is_one_finished_run_with_its_files(mlflow_server, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    (tmp_path / "tuning.md").write_text("| a table |")
    address = log_run("tune-serving", {"chosen.threads": 2}, {"ratio": 1.25}, tmp_path)
    run = rest.get_run(address.rpartition("/")[2])
    assert run["info"]["status"] == "FINISHED"
    assert rest.tags_of(run)["flyweight.kind"] == "tune-serving"
    assert [(metric["key"], metric["value"]) for metric in run["data"]["metrics"]] == [("ratio", 1.25)]
    assert run["data"]["params"] == [{"key": "chosen.threads", "value": "2"}]
    assert artifacts.read(run["info"]["run_id"], "tuning.md") == b"| a table |"


def test_a_run_without_mlflow_fails_at_once_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectionError, match=r"MLflow does not answer at http://127\.0\.0\.1:9 .*start it with `flyweight up`"
    ):
        log_run("tune-serving", {}, {}, tmp_path)
