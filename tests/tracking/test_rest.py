"""What MLflow answers, as errors of ours: absence is told from refusal, and both from failure."""

import json

import pytest
from http_stand_in import Silent, serving

from pipeline.errors import FlyweightError
from pipeline.tracking import artifacts, rest


@pytest.fixture
def server(monkeypatch):
    """A stand-in for MLflow: `server[path] = (status, content)`; what is not there is 404."""
    answers = {}

    class Handler(Silent):
        def do_GET(self):
            status, content = answers.get(self.path.partition("?")[0], (404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}))
            self.answer(status, content if isinstance(content, bytes) else json.dumps(content).encode())

        do_POST = do_GET

    with serving(Handler) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{found.server_port}")
        yield answers


GET, LIST = "/get-artifact", "/api/2.0/mlflow/artifacts/list"


def test_a_file_that_is_not_listed_is_absent_although_mlflow_says_500(server):
    server[GET] = (500, b"<p>Internal Server Error</p>")
    server[LIST] = (200, {"files": [{"path": "other.json"}]})
    assert artifacts.read("r", "verdict.json") is None


def test_a_file_that_is_listed_and_cannot_be_read_is_an_error(server):
    server[GET] = (500, b"<p>Internal Server Error</p>")
    server[LIST] = (200, {"files": [{"path": "verdict.json"}]})
    with pytest.raises(
        ConnectionError, match=r"get-artifact: failed with 500: <p>Internal Server Error</p>; see MLflow's log"
    ):
        artifacts.read("r", "verdict.json")


def test_where_the_list_fails_too_nothing_is_taken_for_absent(server):
    server[GET] = server[LIST] = (500, {"error_code": "INTERNAL_ERROR", "message": "the store is gone"})
    with pytest.raises(ConnectionError, match="artifacts/list: failed with 500: the store is gone"):
        artifacts.read("r", "verdict.json")


def test_404_is_absence(server):
    assert artifacts.read("r", "verdict.json") is None
    assert rest.experiment_id() is None
    assert rest.search_runs("anything") == []
    with pytest.raises(rest.NotFound, match=r"'abc' is neither a directory nor a run of MLflow at http://127\.0\.0\.1"):
        rest.get_run("abc")


def test_an_id_that_is_none_is_absence_too(server):
    server["/api/2.0/mlflow/runs/get"] = (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid run id"})
    with pytest.raises(rest.NotFound, match="neither a directory nor a run"):
        rest.get_run("a b")


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (400, rest.Refused, r"experiments/get-by-name: refused \(400\): not so"),
        (401, FlyweightError, r"refused \(401\): set MLFLOW_TRACKING_URI to http://user:password@host:port"),
        (429, ConnectionError, r"failed with 429: not so; see MLflow's log"),
        (500, ConnectionError, r"failed with 500: not so; see MLflow's log"),
        (503, ConnectionError, r"failed with 503: not so; see MLflow's log"),
    ],
)
def test_every_other_answer_is_an_error_and_never_an_empty_result(server, status, kind, text):
    server["/api/2.0/mlflow/experiments/get-by-name"] = (status, {"error_code": "X", "message": "not so"})
    with pytest.raises(kind, match=text) as caught:
        rest.search_runs("anything")
    assert not isinstance(caught.value, rest.NotFound)


def test_what_is_there_comes_as_bytes(server):
    server[GET] = (200, b"\x00\x01")
    assert artifacts.read("r", "deep/file") == b"\x00\x01"


def test_without_mlflow_the_error_says_what_to_start(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"MLflow does not answer at http://127.0.0.1:9 .*flyweight up"):
        rest.get_run("0" * 32)
