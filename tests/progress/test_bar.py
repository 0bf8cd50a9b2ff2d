import os

import pytest

from pipeline.progress import events
from pipeline.progress.bar import shown


def test_what_is_reported_inside_is_said_where_there_is_no_terminal():
    lines = []
    with shown("load", lines.append):
        events.report("load", done=1, total=2, throughput=10.0)
        events.report("load", done=2, total=2, throughput=12.5)
    assert lines[-1] == "[load] load 100 % throughput 12.5"
    assert events.ENVIRONMENT not in os.environ


def test_it_ends_with_the_block_however_that_ends():
    with pytest.raises(KeyError), shown("load", lambda line: None):
        raise KeyError
    assert events.ENVIRONMENT not in os.environ


def test_a_stage_that_is_followed_already_stays_so(tmp_path, monkeypatch):
    monkeypatch.setenv(events.ENVIRONMENT, str(tmp_path / "events"))
    lines = []
    with shown("load", lines.append):
        events.report("load", done=1, total=1)
    assert lines == []
    assert (tmp_path / "events").read_text().count("\n") == 1


def test_work_without_a_length_has_a_bar_too(monkeypatch):
    """On a terminal, where the bar is drawn."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = []
    with shown("promote", lines.append):
        events.report("observed seconds", done=0, total=0)
    assert lines == [], "the bar was drawn, and nothing was said in its place"
