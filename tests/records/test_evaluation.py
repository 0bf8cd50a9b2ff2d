"""evaluation.json survives a round trip and says what is wrong with a file that is not one."""

import pytest

from pipeline.errors import ModelError
from pipeline.records import evaluation
from pipeline.records.evaluation import Evaluation, Host, Measured
from pipeline.records.measures import Interval, Offline, Served

BETWEEN = Interval(low=90, high=110)
HOST = Host(cpu="a cpu", cores=2, flags=("avx2",), system="Linux", python="3.11", onnxruntime="1", torch="2")


@pytest.fixture
def record():
    teacher = Measured(
        name="teacher", file="teacher/model.onnx", sha256="0" * 64, size_bytes=1000, parameters=10, macs=20,
        precision="float32", target="any", source="teacher",
        offline={64: Offline(images_per_second=100, p50_ms=1, p99_ms=2, calls=3)},
        served={16: Served(throughput=100, interval=BETWEEN, turns=(90, 110), p50_ms=1, p99_ms=2, requests=2, failures=0)},
    )  # fmt: skip
    return Evaluation(
        labels=("a", "b"), confidence=0.95, candidates=(teacher,), host=HOST, engines={"skipped": "no GPU"}
    )


def test_evaluation_round_trip(record, tmp_path):
    assert evaluation.save_evaluation(tmp_path, record).name == "evaluation.json"
    read = evaluation.load_evaluation(tmp_path)
    assert read == record
    assert read.teacher.served[16].throughput == 100  # JSON keys are strings, ours are numbers again


def test_unknown_candidate_is_named_with_those_there_are(record):
    with pytest.raises(ModelError, match="the evaluation has no candidate 'int4'; it has: teacher"):
        record.candidate("int4")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"evaluation\.json cannot be read \(No such file.*that `evaluate` wrote"):
        evaluation.load_evaluation(tmp_path)
