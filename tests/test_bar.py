import os

import pytest

from pipeline import progress
from pipeline.bar import shown


def test_what_is_reported_inside_is_said_where_there_is_no_terminal():
    lines = []
    with shown("load", lines.append):
        progress.report("load", done=1, total=2, throughput=10.0)
        progress.report("load", done=2, total=2, throughput=12.5)
    assert lines[-1] == "[load] load 100 % throughput 12.5"
    assert progress.ENVIRONMENT not in os.environ


def test_it_ends_with_the_block_however_that_ends():
    with pytest.raises(KeyError), shown("load", lambda line: None):
        raise KeyError
    assert progress.ENVIRONMENT not in os.environ


def test_a_stage_that_is_followed_already_stays_so(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.ENVIRONMENT, str(tmp_path / "events"))
    lines = []
    with shown("load", lines.append):
        progress.report("load", done=1, total=1)
    assert lines == []
    assert (tmp_path / "events").read_text().count("\n") == 1
