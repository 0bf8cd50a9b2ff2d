"""Against a real gRPC server in this process that takes its time."""

import pytest
from fake_model_server import FakeModelServer

from pipeline.serving.load import closed_loop
from pipeline.serving.load.processes import drive

MS = 1_000_000


@pytest.fixture
def server():
    server = FakeModelServer(seconds=0.03)
    yield server
    server.stop()


def plan(server, concurrency, **changes):
    return {
        "address": server.address,
        "window": 100 * MS,
        "windows": 3,
        "warmup": 50 * MS,
        "silence": 20,
        "loop": "closed",
        "concurrency": concurrency,
        "connections": closed_loop.connections(concurrency),
        **changes,
    }


def parts(seen):
    return [part for parts in seen.windows.values() for part in parts]


def test_no_answer_is_left_behind_and_all_messages_are_sent(server):
    seen = drive([plan(server, 8)], [b"one", b"two"])
    assert server.answered == len(server.asked)
    assert abs(server.asked.count(b"one") - server.asked.count(b"two")) <= 1
    assert sorted(seen.windows) == [0, 1, 2]
    counted = sum(sum(part["latencies"]["counts"].values()) for part in parts(seen))
    assert 8 <= counted < len(server.asked)  # the warm-up does not count
    assert len(seen.late) == 0  # nothing is due in a closed loop


def test_a_request_counts_where_it_was_due_though_its_answer_comes_after_the_end(server):
    server.seconds = 0.5
    seen = drive([plan(server, 4, warmup=0)], [b"one"])
    assert len(server.asked) == 4
    assert sum(part["answered"] for part in parts(seen)) == 0  # none arrived within the 0.3 s
    first = seen.windows[0][0]["latencies"]
    assert sum(first["counts"].values()) == 4
    assert first["sum"] >= 4 * 500 * MS


def test_several_processes_share_the_requests(server):
    seen = drive([plan(server, 3), plan(server, 2)], [b"one"])
    assert [len(parts) for parts in seen.windows.values()] == [2, 2, 2]
    assert server.answered == len(server.asked) >= 5


def test_failures_count_by_status(server):
    seen = drive([plan(server, 2)], [b"bad"])
    assert {status for part in parts(seen) for status in part["failures"]} == {"RESOURCE_EXHAUSTED"}
    assert sum(part["answered"] for part in parts(seen)) == 0


def test_a_server_that_says_nothing_ends_it_with_the_reason(server):
    server.seconds = 3.0
    with pytest.raises(
        RuntimeError, match=r"could not go on against Triton at 127.*TimeoutError: no answer within 1 s"
    ):
        drive([plan(server, 1, silence=1, window=3000 * MS)], [b"one"])


def test_a_server_that_is_not_there_ends_it_with_the_reason():
    gone = FakeModelServer()
    gone.stop()
    gone.address = "127.0.0.1:9"
    with pytest.raises(RuntimeError, match=r"could not go on against Triton at 127.0.0.1:9: ConnectionRefusedError"):
        drive([plan(gone, 1)], [b"one"])
