"""benchmarks/serving.py and overload.py: the client counts what was answered, and the targets say what the figures say."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serving_toys import write_onnx

ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import overload  # noqa: E402
import serving  # noqa: E402
from peers import report, servers  # noqa: E402
from peers.asking import Wire  # noqa: E402
from peers.http1 import length, request  # noqa: E402

from pipeline.serving.load import processes  # noqa: E402

DELAY = 0.004


class Http:
    """A server that answers after DELAY, in two parts; every tenth request with 503. It counts, and checks bodies."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.good = self.bad = 0
        self.lock = threading.Lock()
        self.bodies: set[bytes] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as incoming:
            while incoming.readline():
                size = 0
                while (line := incoming.readline()) not in {b"\r\n", b""}:
                    name, _, value = line.partition(b":")
                    size = int(value) if name.lower() == b"content-length" else size
                body = incoming.read(size)
                time.sleep(DELAY)
                with self.lock:
                    self.bodies.add(body)
                    turn = self.good + self.bad
                    good = turn % 10 != 9
                    self.good, self.bad = self.good + good, self.bad + (not good)
                head = b"HTTP/1.1 200 OK\r\nContent-" if good else b"HTTP/1.1 503 No\r\nContent-"
                connection.sendall(head)
                connection.sendall(b"length: 4\r\nx: y\r\n\r\nbody")


@pytest.fixture
def http():
    server = Http()
    yield server
    server.listening.close()


def test_the_http_client_counts_what_the_server_answered(http):
    bodies = [b"first", b"second", b""]
    plan = {
        "address": http.address,
        "program": str(servers.PEERS / "http1.py"),
        "concurrency": 5,
        "window": 300_000_000,
        "windows": 3,
        "warmup": 0,
        "silence": 30.0,
    }
    seen = processes.drive([plan], [request("/", body, {"X": "1"}) for body in bodies], until_stable=False)
    parts = [part for parts in seen.windows.values() for part in parts]
    latencies, refused = processes.Histogram(), processes.Histogram()
    for part in parts:
        latencies.add(processes.Histogram.from_json(part["latencies"]))
        refused.add(processes.Histogram.from_json(part["refused"]))
    assert (len(latencies), len(refused)) == (
        http.good,
        http.bad,
    )  # all that were due, those answered after the end too
    assert sum(part["failures"].get("HTTP 503", 0) for part in parts) == http.bad > 0
    assert http.good - 5 <= sum(part["answered"] for part in parts) <= http.good
    assert http.bodies == set(bodies)
    assert latencies.percentile(0.01) >= DELAY * 1e9 * 0.999
    assert sum(part["busy"] for part in parts) > 0


def test_an_answer_is_whole_when_its_length_says_so():
    answer = b"HTTP/1.1 200 OK\r\nDate: now\r\nCONTENT-LENGTH: 3\r\n\r\nabc"
    assert length(answer) == len(answer)
    assert length(answer[:30]) == 0
    with pytest.raises(ConnectionError, match="without Content-Length"):
        length(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


def measured(*rounds: tuple[float, float]) -> list[dict[str, float]]:
    rest = {"p50_ms": 1.0, "failures": 0, "client_cpu": 0.9, "server_cpu": 1.0, "rss_mb": 100.0, "processes": 2}
    return [{"throughput": throughput, "p99_ms": p99, **rest} for throughput, p99 in rounds]


RESULTS = {
    "triton": {"16": measured((960, 5), (1920, 5), (480, 5)), "64": measured((1000, 20))},
    "triton-http": {"16": measured((990, 5), (1980, 5), (440, 5))},
    "identity": {"16": measured((1000, 4), (2000, 4), (500, 4)), "64": measured((1100, 18))},
    "bare": {"16": measured((970, 5), (1900, 5), (500, 5)), "64": measured((1090, 19))},
    "fastapi": {"16": measured((900, 6), (1800, 6), (450, 6)), "64": measured((900, 19))},
    "bentoml": {"16": measured((100, 1), (100, 1), (100, 1)), "64": measured((100, 1))},
    "teacher": {"64": measured((50, 900))},
}


def test_targets_are_ratios_within_a_round():
    found = {one.target: one for one in report.targets(RESULTS)}
    ceiling = found["16 in flight: at least 95% of the identity's throughput"]
    assert ceiling.reached and ceiling.found.startswith("96.0% (0.96 to 0.96 in 3 rounds)")
    assert not found["64 in flight: at least 95% of the identity's throughput"].reached
    care = found["16 in flight: at least 95% of a bare `session.run`'s throughput"]
    assert care.reached and care.found.startswith("99.0% (0.96 to 1.01 in 3 rounds)")
    assert not found["64 in flight: at least 95% of a bare `session.run`'s throughput"].reached
    ahead = found["16 in flight, by gRPC to its HTTP/1.1: more throughput than the best peer (fastapi), p99 no worse"]
    assert ahead.reached and ahead.found.startswith("throughput 1.07 x")
    alike = found["16 in flight, by the same client: more throughput than the best peer (fastapi), p99 no worse"]
    assert alike.reached and alike.found.startswith("throughput 1.10 x")
    slower = found["64 in flight, by gRPC to its HTTP/1.1: more throughput than the best peer (fastapi), p99 no worse"]
    assert not slower.reached and "p99 1.05 x" in slower.found
    teacher = next(one for target, one in found.items() if "teacher" in target)
    assert teacher.reached and teacher.found.startswith("20.0 x")
    assert report.targets({"triton": RESULTS["triton"]}) == []


def test_answers_that_are_wrong_are_not_timed():
    right = np.arange(6, dtype=np.float32).reshape(3, 2)
    wire = Wire("", True, [], lambda index: right[index].tobytes())
    assert serving.check(serving.Contender("fastapi", wire, None, [1]), right) == 0.0
    swapped = Wire("", True, [], lambda index: right[2 - index].tobytes())
    with pytest.raises(SystemExit, match=r"fastapi answers wrongly: off by 80\.0% of the largest value"):
        serving.check(serving.Contender("fastapi", swapped, None, [1]), right)


def ticks(*p99: float, failed: int = 0) -> list[overload.Tick]:
    """Two ticks before a surge of half a second, and what comes then."""
    return [overload.Tick((place - 2) * 0.25, 10, failed if place >= 4 else 0, one) for place, one in enumerate(p99)]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (ticks(2, 2, 90, 90, 2, 2, 2), 0.0),
        (ticks(2, 2, 90, 90, 90, 7, 5, 2), 0.5),
        (ticks(2, 2, 90, 90, 2, 2, 7), float("inf")),
        (ticks(2, 2, 2, 2, 2, 2, failed=1), float("inf")),
    ],
)
def test_recovery_ends_with_the_last_bad_tick(seen, expected):
    assert overload.recovery(seen, 0.5) == expected


def test_growing_memory_is_not_flat():
    assert overload.flat([100, 100, 101, 100, 102, 101, 103, 102])
    assert not overload.flat([100, 102, 104, 106, 108, 110, 112, 114])


def one_surge(**changes) -> overload.Overload:
    figures = {
        "limit": 64, "capacity": 1000.0, "capacity_after": 1000.0, "offered": 2000.0, "goodput": 910.0,
        "answered_p99_ms": 90.0, "refused": 500, "refused_p50_ms": 30.0, "refused_p99_ms": 60.0,
        "statuses": {"UNAVAILABLE": 500}, "recovery_s": 0.5, "rss_mb": [100.0] * 8, "client_cpu": 0.1,
        "seconds": 8.0, "ticks": [],
    }  # fmt: skip
    return overload.Overload(**{**figures, **changes})


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"goodput": 890.0}, [0]),
        ({"statuses": {"UNAVAILABLE": 499, "INTERNAL": 1}}, [1]),
        ({"refused": 0, "statuses": {}}, [1]),
        ({"refused_p99_ms": 400.0}, [1]),
        ({"rss_mb": [100.0, 110, 120, 130, 140, 150, 160, 170]}, [2]),
        ({"recovery_s": 2.5}, [3]),
    ],
)
def test_each_target_of_overload_can_be_missed(changes, missed):
    assert [place for place, one in enumerate(overload.targets(one_surge(**changes))) if not one.reached] == missed


def run(script: str, directory: Path, server, *arguments: str) -> dict:
    environment = os.environ | {
        "FLYWEIGHT_TRITON_HOME": str((server.home / "home" / "triton").resolve()),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    write_onnx(directory / "toy.onnx", 0.5)
    line = [sys.executable, str(BENCHMARKS / script), "--model", str(directory / "toy.onnx")]
    done = subprocess.run(
        [*line, "--out", str(directory), "--name", "found", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}, (
        done.stdout + done.stderr
    )  # 1: a target was missed, as may well be in so short a time
    assert (directory / "found.png").stat().st_size > 1000
    assert str(directory) not in (directory / "found.md").read_text()
    return json.loads((directory / "found.json").read_text())


@pytest.mark.integration
@pytest.mark.benchmark
def test_the_server_its_ceiling_and_the_limit_are_measured_in_turns(triton_server, tmp_path):
    wanted = ["onnxruntime", "triton", "identity", "bare", "triton-http"]
    short = ["--rounds", "2", "--seconds", "0.3", "--concurrency", "1", "16"]
    found = run("serving.py", tmp_path, triton_server, "--only", ",".join(wanted), *short)
    assert list(found["results"]) == wanted
    for levels in found["results"].values():
        assert {level: len(rounds) for level, rounds in levels.items()} == {"1": 2, "16": 2}
        assert all(one["throughput"] > 0 and one["failures"] == 0 for rounds in levels.values() for one in rounds)
    assert found["largest_difference"] == {"triton": 0.0, "identity": 0.0, "bare": 0.0, "triton-http": 0.0}
    assert [one["target"][:12] for one in found["targets"]] == ["1 in flight:", "16 in flight"] * 2
    assert found["missing"] == {}


@pytest.mark.integration
@pytest.mark.benchmark
def test_a_surge_is_refused_in_part_and_ends(triton_server, tmp_path):
    found = run("overload.py", tmp_path, triton_server, "--seconds", "2", "--limit", "16")
    limited = found["limited"]
    assert limited["offered"] == pytest.approx(2 * limited["capacity"])
    assert limited["goodput"] > 0
    assert set(limited["statuses"]) <= {"UNAVAILABLE"}
    assert len(limited["rss_mb"]) == 5 and min(limited["rss_mb"]) > 10
    assert found["control"]["refused"] == 0
