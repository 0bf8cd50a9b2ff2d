"""What a person sees of a sweep and of a search."""

import io
from types import SimpleNamespace

import pytest
from load_toys import CURVE, result
from rich.console import Console

from pipeline.report import plots
from pipeline.serving.load import report
from pipeline.serving.load.result import Closed, Open
from pipeline.serving.load.sweep import Sweep
from pipeline.serving.load.tuning import Trial, Tuning
from pipeline.settings.serving import Serving


def text(table):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.fixture
def found():
    return Sweep(tuple(result(Closed(4**place), *point) for place, point in enumerate(CURVE)), 1)


def test_the_table_has_a_line_a_load_and_says_where_the_knee_is(found):
    shown = text(report.load_table("proxy", found))
    lines = shown.splitlines()
    assert [line.split()[:2] for line in lines[4:8]] == [["1", "100"], ["4", "180"], ["16", "200"], ["64", "200"]]
    assert max(map(len, map(str.rstrip, lines))) <= 80
    assert "Knee (most answers/s for each ms of waiting): 4 in flight, 180 answers/s." in shown
    assert "GPU" not in shown
    assert "*" not in shown


def test_what_must_not_be_believed_has_a_mark_and_a_sentence():
    shaky = result(Closed(4), 10.0, 1.0, stable=False, client_cpu=0.9)
    failing = result(Open(50.0), 10.0, 1.0, failures=3, errors={"UNAVAILABLE": 2, "INTERNAL": 1}, server=None)
    shown = " ".join(text(report.load_table("proxy", Sweep((shaky, failing), None))).split())
    assert "4 * !" in shown
    assert "not stable, its last three windows differ by more than 10 %: 4 in flight" in shown
    assert "the load generator had no time to spare, the server may do more: 4 in flight" in shown
    assert "50/s poisson: 3 of 30 requests failed: 1 x INTERNAL, 2 x UNAVAILABLE" in shown


def test_the_plot_is_the_curve_with_its_knee(found, tmp_path):
    figure = report.load_figure("proxy", found)
    (axes,) = figure.axes
    curves = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert curves["p50"] == CURVE
    assert curves["p99"] == [(throughput, 3 * ms) for throughput, ms in CURVE]
    assert any(list(line.get_xdata()) == [180.0, 180.0] for line in axes.lines), "the knee"
    assert "knee: 4 in flight" in [one.get_text() for one in axes.texts]
    for name in ("load.png", "load.svg"):
        plots.write(figure, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


@pytest.fixture
def tuning():
    start, best = Serving(), Serving(instances=1, threads=2)

    def trial(serving, *throughputs, refused=None):
        figures = [SimpleNamespace(throughput=one, p99_ms=16e3 / one) for one in throughputs]
        return Trial(serving, list(throughputs), figures, refused)

    trials = (trial(start, 100.0, 120.0, 110.0), trial(best, 150.0), trial(Serving(instances=4), refused="no memory"))
    return Tuning("16 requests in flight", start, best, 1.36, 1.2, 1.5, trials)


def test_the_search_is_shown_best_first_with_what_was_and_what_is_chosen(tuning):
    lines = [line for line in text(report.tuning_table(tuning)).splitlines() if "│" in line]
    assert ["chosen" in lines[0], "as they were" in lines[1], "no memory" in lines[2]] == [True, True, True]
    assert "1 x 2 threads, batches up to 64, delay 0 us does 1.360 times (1.200 to 1.500" in tuning.sentence
    assert report.tuning_text(tuning).splitlines()[4] == "| 1 | 2 | 64 | 0 | 150 | 150 | 107 | 1 |"


def test_the_plot_of_a_search_marks_both(tuning):
    (axes,) = report.tuning_figure(tuning).axes
    labels = [one.get_text() for one in axes.get_legend().get_texts()]
    assert labels[0] == "tried"
    assert labels[1].startswith("as they were: 2 x 1 threads")
    assert labels[2].startswith("chosen: 1 x 2 threads")
