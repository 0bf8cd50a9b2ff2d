"""The REST client against a small server that answers as Airflow does."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FlyweightError
from pipeline.services.airflow_client import AirflowClient
from pipeline.services.airflow_settings import POOLS, airflow_password
from pipeline.services.services import _airflow_trouble

HEALTH = "/api/v2/monitor/health"  # which anybody may ask
BUSY = 500, {"detail": "database is locked"}


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives what `script` holds for a method and a path; remembers what it was asked."""

    script: dict[tuple[str, str], tuple[int, Any] | list[tuple[int, Any]]]
    asked: list[tuple[str, str, Any]]
    good_token: str

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path = self.path.partition("?")[0]
        self.asked.append((self.command, path, body))
        if path == "/auth/token":
            status, answer = 201, {"access_token": self.good_token}
        elif path != HEALTH and self.headers.get("Authorization") != f"Bearer {self.good_token}":
            status, answer = 401, {"detail": "expired"}
        else:
            answers = self.script.get((self.command, path), (404, {"detail": "no such thing"}))
            status, answer = answers.pop(0) if isinstance(answers, list) else answers
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_POST = _answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    handler = type("Handler", (Answers,), {"script": {}, "asked": [], "good_token": "first"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        monkeypatch.setenv("FLYWEIGHT_AIRFLOW_PORT", str(running.server_address[1]))
        monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path))
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield handler
        running.shutdown()


def test_it_logs_in_once_with_the_generated_password(server: type[Answers], tmp_path: Path) -> None:
    server.script["GET", "/api/v2/dags/make_proxy"] = 200, {"dag_id": "make_proxy"}
    client = AirflowClient()
    assert client.get("dags/make_proxy") == {"dag_id": "make_proxy"}
    assert client.get("dags/make_proxy", limit=3) == {"dag_id": "make_proxy"}
    logins = [body for _, path, body in server.asked if path == "/auth/token"]
    assert logins == [{"username": "admin", "password": airflow_password(tmp_path / "airflow")}]


def test_an_expired_token_is_renewed(server: type[Answers]) -> None:
    server.script["GET", "/api/v2/dags"] = 200, {"dags": []}
    client = AirflowClient()
    client.get("dags")
    server.good_token = "second"
    assert client.get("dags") == {"dags": []}


def test_what_is_not_there_is_none_and_other_errors_are_raised(server: type[Answers]) -> None:
    server.script["GET", "/api/v2/broken"] = 500, {"detail": "boom"}
    client = AirflowClient()
    assert client.get("dags/nothing") is None
    with pytest.raises(urllib.error.HTTPError):
        client.get("broken")
    assert [path for _, path, _ in server.asked].count("/api/v2/broken") == 2


def test_an_internal_error_is_asked_again_where_that_changes_nothing(server: type[Answers]) -> None:
    server.script["GET", "/api/v2/dags"] = [BUSY, (200, {"dags": []})]
    server.script["POST", "/api/v2/pools"] = [BUSY, (201, {"name": "training"})]
    client = AirflowClient()
    assert client.get("dags") == {"dags": []}
    with pytest.raises(urllib.error.HTTPError):
        client.ensure_pool("training", 1, "one at a time")


def test_an_airflow_that_cannot_make_its_pools_yet_is_not_healthy(server: type[Answers]) -> None:
    parts = ("metadatabase", "scheduler", "dag_processor")
    server.script["GET", HEALTH] = 200, {part: {"status": "healthy"} for part in parts}
    server.script["POST", "/api/v2/pools"] = [BUSY, *[(201, {})] * len(POOLS)]
    assert "makes no pools (HTTP Error 500" in _airflow_trouble()
    assert _airflow_trouble() == ""
    assert server.script["POST", "/api/v2/pools"] == []


def test_a_run_is_triggered_now_with_its_settings(server: type[Answers]) -> None:
    server.script["POST", "/api/v2/dags/make_proxy/dagRuns"] = 200, {"state": "queued"}
    AirflowClient().trigger("make_proxy", "demo-1", {"recipe": "digits"})
    assert server.asked[-1][2] == {"dag_run_id": "demo-1", "logical_date": None, "conf": {"recipe": "digits"}}


def test_a_refused_run_is_the_users_error_in_airflows_words(server: type[Answers]) -> None:
    server.script["POST", "/api/v2/dags/make_proxy/dagRuns"] = 400, {"detail": "Invalid input for param recipe"}
    with pytest.raises(
        FlyweightError, match=r"Airflow refuses to start a run of make_proxy: Invalid input for param recipe"
    ):
        AirflowClient().trigger("make_proxy", "demo-1", {"recipe": 3})


RUNS = "/api/v2/dags/make_proxy/dagRuns"
BROKEN = 500, {"detail": "database is locked"}


def test_an_internal_error_is_met_with_a_second_try(server: type[Answers]) -> None:
    server.script["POST", RUNS] = [BROKEN, (200, {"state": "queued"})]
    assert AirflowClient().trigger("make_proxy", "demo-1", {}) == {"state": "queued"}


def test_a_run_that_the_broken_try_had_started_is_not_started_twice(server: type[Answers]) -> None:
    server.script["POST", RUNS] = [BROKEN, (409, {"detail": "already exists"})]
    server.script["GET", f"{RUNS}/demo-1"] = 200, {"state": "running"}
    assert AirflowClient().trigger("make_proxy", "demo-1", {}) == {"state": "running"}


def test_a_second_internal_error_is_raised(server: type[Answers]) -> None:
    server.script["POST", RUNS] = BROKEN
    with pytest.raises(urllib.error.HTTPError, match="500"):
        AirflowClient().trigger("make_proxy", "demo-1", {})
    assert [method for method, path, _ in server.asked if path == RUNS] == ["POST", "POST"]


def test_a_pool_that_is_there_already_is_left_alone(server: type[Answers]) -> None:
    server.script["POST", "/api/v2/pools"] = 409, {"detail": "exists"}
    AirflowClient().ensure_pool("training", 1, "one at a time")
    assert server.asked[-1][2] == {"name": "training", "slots": 1, "description": "one at a time"}


def test_without_airflow_it_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path))
    monkeypatch.setenv("FLYWEIGHT_AIRFLOW_PORT", "1")
    with pytest.raises(
        ConnectionError, match=r"does not answer at http://127\.0\.0\.1:1: .*Start it with `flyweight up`"
    ):
        AirflowClient().get("dags")
