"""What is written to MLflow's runs: all of it however much, tried again where MLflow fails, as it was where it refuses."""

import json
import math

import pytest
from http_stand_in import Silent, serving

from pipeline.errors import FlyweightError
from pipeline.tracking import artifacts, rest, runs


@pytest.fixture
def server(monkeypatch):
    """A stand-in for MLflow: `server.fails` requests get a 500 first; `server.got` is what the others brought."""

    class Handler(Silent):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.server.fails:
                self.server.fails -= 1
                self.answer(500, b"{}")
            else:
                self.server.got.append((self.path.rpartition("/")[2], body))
                self.answer(200, b"{}")

    with serving(Handler) as found:
        found.fails, found.got = 0, []
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{found.server_port}")
        yield found


def test_more_than_mlflow_takes_at_once_is_sent_in_several_requests(server):
    params = {f"p{number}": "x" for number in range(250)}
    metrics = [runs.Metric("loss", 1.0, 0, step) for step in range(1001)]
    runs.log("r", metrics=metrics, params=params, tags={"a": "b"})
    assert [len(body.get("params", [])) for _, body in server.got if "params" in body] == [100, 100, 50]
    assert [len(body["metrics"]) for _, body in server.got if "metrics" in body] == [1000, 1]
    assert [body["tags"] for _, body in server.got if "tags" in body] == [[{"key": "a", "value": "b"}]]


def test_nothing_to_log_asks_nobody(server):
    runs.log("r")
    assert server.got == []


def test_numbers_that_json_does_not_know_arrive_as_mlflow_writes_them(server):
    runs.log("r", metrics=[runs.Metric("loss", value, 0) for value in (math.nan, math.inf, -math.inf)])
    assert [one["value"] for one in server.got[0][1]["metrics"]] == ["NaN", "Infinity", "-Infinity"]


def test_a_database_that_is_locked_for_a_moment_costs_no_training(server):
    server.fails = 2
    runs.set_tag("r", "key", "value")
    assert server.got == [("set-tag", {"run_id": "r", "key": "key", "value": "value"})]


def test_a_store_that_stays_broken_is_an_error_in_the_end(server, monkeypatch):
    monkeypatch.setattr(runs._write.retry, "stop", lambda state: state.attempt_number >= 2)
    server.fails = 9
    with pytest.raises(ConnectionError, match="runs/update: failed with 500"):
        runs.update("r", "FINISHED")
    assert server.fails == 7


@pytest.mark.integration
def test_files_come_back_from_a_real_mlflow_as_they_were(mlflow_server, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "a file.bin").write_bytes(b"\x00\xff")
    run_id, experiment = runs.create("files", {"flyweight.kind": "test"})
    artifacts.put(run_id, tmp_path / "out")
    artifacts.put_text(run_id, "page.html", "<p>grün</p>")
    assert rest.experiment_id() == experiment
    assert sorted(artifacts.names(run_id)) == ["deep", "page.html"]
    assert artifacts.read(run_id, "page.html").decode() == "<p>grün</p>"
    fetched = artifacts.fetched(run_id)
    assert (fetched / "deep" / "a file.bin").read_bytes() == b"\x00\xff"
    assert artifacts.fetched(run_id) == fetched


@pytest.mark.integration
def test_a_run_that_left_nothing_has_an_empty_directory(mlflow_server, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    run_id, _ = runs.create("empty", {})
    assert list(artifacts.fetched(run_id).iterdir()) == []


@pytest.mark.integration
def test_files_that_lie_on_another_machine_are_no_empty_directory(mlflow_server, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    run_id, _ = runs.create("elsewhere", {})
    artifacts.put_text(run_id, "page.html", "here")
    monkeypatch.setattr(artifacts, "_place", lambda run_id: tmp_path / "not on this machine")
    with pytest.raises(FlyweightError, match=r"are in .*not on this machine of the machine where MLflow runs"):
        artifacts.fetched(run_id)
    assert artifacts.names(run_id) == ["page.html"]


@pytest.mark.integration
def test_a_user_whom_the_system_does_not_name_opens_runs_too(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setattr("getpass.getuser", lambda: 1 / 0)  # a container with a number for a user
    assert rest.get_run(runs.create("nobody", {})[0])["info"]["status"] == "RUNNING"
