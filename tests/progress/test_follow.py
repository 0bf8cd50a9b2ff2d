"""The progress file: what a stage writes is what the follower reads."""

import time

from pipeline.progress import events as progress
from pipeline.progress.follow import Follower, remaining_seconds


def test_follower_reads_what_report_writes(tmp_path, monkeypatch):
    file = tmp_path / "progress.jsonl"
    monkeypatch.setenv(progress.ENVIRONMENT, str(file))
    events, lines = [], []
    follower = Follower(file, "train", events.extend, lines.append)
    for step in range(1, 4):
        progress.report("epochs", done=step, total=3, loss=1.0 / step)
    follower.close()
    assert [event["step"] for event in events] == [1, 2, 3]
    assert events[-1]["metrics"] == {"loss": 1.0 / 3}
    assert lines[-1].startswith("[train] epochs 100 %")
    assert "loss 0.3333" in lines[-1]


def test_half_a_line_waits_for_its_other_half(tmp_path):
    file = tmp_path / "progress.jsonl"
    events: list = []
    follower = Follower(file, "train", events.extend, lambda line: None)
    whole = '{"time": 1, "what": "a", "done": 1, "total": 2, "step": 1, "metrics": {}}\n'
    with file.open("a") as out:
        out.write(whole + whole[:10])
        out.flush()
        time.sleep(1.2)
        assert len(events) == 1
        out.write(whole[10:])
    follower.close()
    assert len(events) == 2


def test_remaining_seconds_is_the_rest_at_the_same_pace():
    first = {"done": 2, "total": 10, "time": 100.0}
    assert remaining_seconds(first, {"done": 4, "total": 10, "time": 110.0}) == 30.0
    assert remaining_seconds(first, first) is None


def test_without_a_file_progress_is_logged(monkeypatch, caplog):
    monkeypatch.delenv(progress.ENVIRONMENT, raising=False)
    with caplog.at_level("INFO"):
        progress.report("epochs", done=1, total=2, loss=0.5)
    assert "epochs 1/2 loss 0.5" in caplog.text
