"""Talk to Airflow's REST interface (v2) with nothing but the standard library.

On a full machine Airflow gives up waiting for SQLite after 5 seconds and answers with an internal error. What changes nothing is
asked a second time then; what changes something leaves it to the caller, who knows what a first try may have done.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from pipeline.errors import FlyweightError
from pipeline.machine import places
from pipeline.services.airflow_settings import USER, airflow_password

_TIMEOUT_SECONDS = 30.0


class AirflowClient:
    """Logged in as the generated user of the local Airflow."""

    def __init__(self) -> None:
        self._url = places.airflow()
        self._token = ""

    def get(self, path: str, **query: str | int) -> Any:
        """Return the JSON answer of ``/api/v2/<path>``, or None where there is no such thing."""
        try:
            return self._call("GET", f"/api/v2/{path}?{urllib.parse.urlencode(query)}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def trigger(self, dag: str, run_id: str, conf: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run of `dag` now, never twice. Raises `FlyweightError` with Airflow's own words where it refuses `conf`."""
        runs, body = f"/api/v2/dags/{dag}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        try:
            return self._call("POST", runs, body)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise _refusal(dag, error) from None
        try:
            return self._call("POST", runs, body)
        except urllib.error.HTTPError as error:
            if error.code == 409:  # the first try had started it after all
                return self._call("GET", f"{runs}/{run_id}")
            raise _refusal(dag, error) from None

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Make the pool `name`, or do nothing where there is one."""
        try:
            self._call("POST", "/api/v2/pools", {"name": name, "slots": slots, "description": description})
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        if not self._token:
            self._login()
        try:
            return self._send(method, path, body)
        except urllib.error.HTTPError as error:
            if error.code == 401:  # a token lives for a day, and a training may take longer
                self._login()
            elif error.code < 500 or method != "GET":
                raise
        return self._send(method, path, body)

    def _login(self) -> None:
        self._token = ""
        password = airflow_password(places.home() / "airflow")
        self._token = self._send("POST", "/auth/token", {"username": USER, "password": password})["access_token"]

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._url + path, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, TimeoutError) as error:
            raise ConnectionError(
                f"Airflow does not answer at {self._url}: {error}. Start it with `flyweight up`"
            ) from error


def _refusal(dag: str, error: urllib.error.HTTPError) -> Exception:
    """What to raise for `error`: the user's error in Airflow's words, or what is nobody's."""
    if error.code in {400, 409, 422}:
        return FlyweightError(f"Airflow refuses to start a run of {dag}: {_detail(error)}")
    return error


def _detail(error: urllib.error.HTTPError) -> str:
    """The sentence in Airflow's error answer."""
    text = error.read().decode(errors="replace")
    try:
        detail = json.loads(text).get("detail", text)
    except json.JSONDecodeError:
        return text
    return detail if isinstance(detail, str) else json.dumps(detail)
