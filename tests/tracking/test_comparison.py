"""What MLflow's table of runs says of a pipeline run: by it alone two runs are told apart."""

import json

import pytest

from pipeline.records.evaluation import Evaluation, Host, Measured
from pipeline.records.measures import Estimate, Offline, Quality, Served
from pipeline.records.verdict import Verdict
from pipeline.tracking import artifacts, comparison, pipeline_run, rest

HOST = Host(cpu="c", cores=2, flags=(), system="s", python="3", onnxruntime="1", torch="2")


def _candidate(name, accuracy, bytes_, speed):
    around = Estimate(value=accuracy, low=accuracy - 0.01, high=accuracy + 0.01)
    drop = None if name == "teacher" else Estimate(value=0.02, low=0.01, high=0.03)
    quality = Quality(
        images=100,
        accuracy=around,
        drop=drop,
        agreement=1,
        churn=0,
        ece=0,
        nll=0,
        recall=(),
        confusion=(),
        reliability=(),
    )
    return Measured(
        name=name,
        file="model.onnx",
        sha256="0",
        size_bytes=bytes_,
        parameters=10,
        macs=100,
        precision="float32",
        target="any",
        source="teacher",
        test=quality,
        offline={n: Offline(images_per_second=n * speed, p50_ms=1, p99_ms=2, calls=3) for n in (1, 64)},
        served={n: Served(throughput=n * speed, p50_ms=1, p99_ms=n, requests=5, failures=0) for n in (1, 16)},
    )


def _evidence(pipeline="one", winner="int8", **more):
    candidates = (_candidate("teacher", 0.9, 4000, 1.0), _candidate("int8", 0.88, 1000, 3.0))
    evaluation = Evaluation(labels=("a",), confidence=0.95, candidates=candidates, host=HOST)
    verdict = Verdict(
        verdict="PROMOTE" if winner else "INFEASIBLE",
        winner=winner,
        nearest=None if winner else "int8",
        sentence="x",
        rule="y",
        budget={},
    )
    return {
        "pipeline": pipeline,
        "begun": "2026-01-02 03:04:05",
        "stages": [{"stage": "train", "status": "finished"}],
        "evaluation": evaluation.model_dump(mode="json"),
        "verdict": verdict.model_dump(mode="json"),
        "promotion": {"model": "proxy", "version": 3},
        "data": {"dataset": "digits", "path": "data/digits", "dvc_md5": "0123456789abcdef0123456789abcdef.dir"},
        "settings": {"train.fit.epochs": "4", **{f"a.setting.{n}": "x" for n in range(150)}, "long": "y" * 7000},
        **more,
    }


def test_the_winner_and_the_teacher_are_measured_alike():
    found = comparison.metrics(_evidence())
    teacher = {name.removeprefix("teacher/") for name in found if name.startswith("teacher/")}
    proxy = {name.removeprefix("proxy/") for name in found if name.startswith("proxy/")}
    assert teacher < proxy
    assert proxy - teacher == {"accuracy_drop", "accuracy_drop_high", "size_ratio", "speedup", "served_speedup"}
    assert (found["proxy/accuracy_low"], found["proxy/accuracy"], found["proxy/accuracy_high"]) == (0.87, 0.88, 0.89)
    assert found["proxy/size_ratio"] == 4
    assert found["proxy/speedup"] == found["proxy/served_speedup"] == 3
    assert (found["proxy/served_throughput"], found["proxy/served_p99_ms"]) == (48, 16)
    assert (found["teacher/served_throughput"], found["teacher/served_p99_ms"]) == (16, 16)


def test_without_a_winner_the_nearest_is_shown_and_said_to_be_no_winner():
    evidence = _evidence(winner=None, promotion=None)
    assert comparison.metrics(evidence)["proxy/accuracy"] == 0.88
    found = comparison.tags(evidence)
    assert (found["verdict"], found["nearest"]) == ("INFEASIBLE", "int8")
    assert "winner" not in found and "registered_version" not in found


def test_a_run_that_measured_nothing_has_no_numbers():
    assert comparison.metrics({**_evidence(), "evaluation": None, "verdict": None}) == {}


def test_the_wall_time_ends_with_the_last_stage():
    import time

    begun = time.mktime(time.strptime("2026-01-02 03:04:05", "%Y-%m-%d %H:%M:%S"))
    stages = [{"ended": begun + 90}, {"ended": begun + 30}, {"status": "not run"}]
    assert comparison.metrics(_evidence(stages=stages))["wall_seconds"] == 90


@pytest.mark.integration  # a real MLflow server
def test_the_parent_run_carries_numbers_settings_data_and_version(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    for _ in range(2):  # a report may be written again
        address = pipeline_run.log_report(_evidence(), "<p>page</p>", "**summary**")
    run = rest.get_run(pipeline_run.open_pipeline("one"))
    assert address == rest.report_url(run["info"]["run_id"], run["info"]["experiment_id"])
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert metrics == comparison.metrics(_evidence())
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert params["train.fit.epochs"] == "4" and len(params) == 152 and len(params["long"]) == 6000
    tags = rest.tags_of(run)
    assert (tags["winner"], tags["verdict"], tags["registered_version"]) == ("int8", "PROMOTE", "proxy 3")
    assert tags["flyweight.dvc_md5"].endswith(".dir") and tags["mlflow.note.content"] == "**summary**"
    (data,) = run["inputs"]["dataset_inputs"]
    assert (data["dataset"]["name"], data["dataset"]["digest"]) == ("digits", "0123456789abcdef0123456789abcdef")
    assert json.loads(data["dataset"]["source"])["path"] == "data/digits"
    assert artifacts.read(run["info"]["run_id"], "report.html") == b"<p>page</p>"
    pipeline_run.close_pipeline("one", complete=True)
    found = rest.call("GET", "experiments/get", {"experiment_id": run["info"]["experiment_id"]})["experiment"]
    view = json.loads({tag["key"]: tag["value"] for tag in found["tags"]}["mlflow.sharedViewState.flyweight"])
    shown = {column.partition(".")[2].strip("`") for column in view["selectedColumns"]}
    assert shown <= {*metrics, *tags, "wall_seconds"} and {"winner", "proxy/accuracy"} < shown
