import pytest
from fake_model_server import FakeModelServer

from pipeline.serving.load.processes import drive, is_stable

MS = 1_000_000


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([(100.0, 5.0), (110.0, 5.0), (105.0, 5.5)], True),  # exactly 10 %
        ([(100.0, 5.0), (111.0, 5.0), (105.0, 5.0)], False),  # throughput
        ([(100.0, 5.0), (100.0, 5.6), (100.0, 5.0)], False),  # latency
        ([(9.0, 90.0), (100.0, 5.0), (100.0, 5.0), (100.0, 5.0)], True),  # the first is over
        ([(100.0, 5.0), (100.0, 5.0)], False),
        ([(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], False),
    ],
)
def test_stable_is_when_three_windows_differ_by_a_tenth_at_most(windows, expected):
    assert is_stable(windows) is expected


def plan(server, windows):
    return {
        **{"address": server.address, "window": 200 * MS, "windows": windows, "warmup": 100 * MS, "silence": 20},
        **{"loop": "closed", "concurrency": 1, "connections": 1},
    }


def test_patience_ends_when_three_windows_agree():
    server = FakeModelServer(seconds=0.005)
    calls = []

    def snapshot():
        calls.append(server.answered)
        server.seconds = 0.005 if len(calls) == 1 else 0.02  # slower from the second window on

    heard = []
    seen = drive([plan(server, 40)], [b"one"], snapshot, heard.append)
    server.stop()
    assert seen.stable
    assert 4 <= len(seen.windows) < 40
    assert len(calls) == len(seen.windows) + 1 == len(heard)  # before the first window and after each; the last is 1.0
    assert heard[-1] == 1.0
