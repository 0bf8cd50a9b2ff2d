"""The progress file: what a stage writes is what the follower reads."""

import time

import pytest

from pipeline.progress import events
from pipeline.progress.follow import Follower, remaining_seconds, share


def test_follower_reads_what_report_writes(tmp_path, monkeypatch):
    file = tmp_path / "progress.jsonl"
    monkeypatch.setenv(events.ENVIRONMENT, str(file))
    seen, lines = [], []
    follower = Follower(file, "train", seen.extend, lines.append)
    for step in range(1, 4):
        events.report("epochs", done=step, total=3, loss=1.0 / step)
    follower.close()
    assert [event["step"] for event in seen] == [1, 2, 3]
    assert seen[-1]["metrics"] == {"loss": 1.0 / 3}
    assert lines[-1].startswith("[train] epochs 100 %")
    assert "loss 0.3333" in lines[-1]


def test_half_a_line_waits_for_its_other_half(tmp_path):
    file = tmp_path / "progress.jsonl"
    seen: list = []
    follower = Follower(file, "train", seen.extend, lambda line: None)
    whole = '{"time": 1, "what": "a", "done": 1, "total": 2, "step": 1, "metrics": {}}\n'
    with file.open("a") as out:
        out.write(whole + whole[:10])
        out.flush()
        time.sleep(1.2)
        assert len(seen) == 1
        out.write(whole[10:])
    follower.close()
    assert len(seen) == 2


def test_remaining_seconds_is_the_rest_at_the_same_pace():
    first = {"done": 2, "total": 10, "time": 100.0}
    assert remaining_seconds(first, {"done": 4, "total": 10, "time": 110.0}) == 30.0
    assert remaining_seconds(first, first) is None


def test_without_a_file_progress_is_logged(monkeypatch, caplog):
    monkeypatch.delenv(events.ENVIRONMENT, raising=False)
    with caplog.at_level("INFO"):
        events.report("epochs", done=1, total=2, loss=0.5)
    assert "epochs 1/2 loss 0.5" in caplog.text


@pytest.mark.parametrize(
    ("done", "total", "expected"), [(0, 0, 1.0), (0, -1, 1.0), (1, 4, 0.25), (5, 4, 1.0), (-1, 4, 0.0), (0.1, 0.2, 0.5)]
)
def test_share_is_defined_for_every_total(done, total, expected):
    assert share({"done": done, "total": total}) == expected


def test_work_without_a_length_is_followed_to_its_end(tmp_path, monkeypatch):
    """As `promote` reports with a short observation: it ended with ZeroDivisionError after the version went live."""
    file, lines = tmp_path / "progress.jsonl", []
    monkeypatch.setenv(events.ENVIRONMENT, str(file))
    follower = Follower(file, "promote", lambda events: None, lines.append)
    events.report("observed seconds", done=0, total=0)
    follower.close()
    assert lines == ["[promote] observed seconds 100 %"]


def test_no_time_is_left_beyond_the_total():
    first = {"done": 2, "total": 3, "time": 100.0}
    assert remaining_seconds(first, {"done": 4, "total": 3, "time": 110.0}) == 0.0
