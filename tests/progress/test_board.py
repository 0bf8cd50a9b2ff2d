"""What a person sees of a stage, for work of any length."""

import pytest

from pipeline.progress.board import StageView


def event(done, total, **more):
    return {"what": "observed seconds", "done": done, "total": total, "time": float(done), "metrics": {}, **more}


@pytest.mark.parametrize(("done", "total", "percent"), [(0, 0, "100 %"), (1, 4, "25 %"), (5, 4, "100 %")])
def test_percent_of_work_of_any_length(done, total, percent):
    view = StageView("promote", "running", first=event(0, total), last=event(done, total))
    assert view.percent == percent
    assert percent in view.line()
