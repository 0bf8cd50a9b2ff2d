"""Every plot is drawn from the evaluation alone, as PNG and as SVG that takes the page's colour."""

import xml.etree.ElementTree as ET

import pytest

from pipeline.report import plots


@pytest.fixture(scope="module")
def drawn(evaluation, verdict):
    return plots.all_plots(evaluation, verdict)


def test_there_is_a_plot_for_everything_that_was_measured(drawn):
    assert set(drawn) == {
        "sizes", "confusion_matrix", "reliability", "recall_change", "accuracy_throughput", "accuracy_latency",
    }  # fmt: skip


def test_plots_look_at_the_winner(drawn):
    assert drawn["confusion_matrix"].axes[0].get_title("left").startswith("int8:")


def test_confusion_matrix_shows_the_counts(drawn, evaluation):
    shown = sorted(int(text.get_text()) for text in drawn["confusion_matrix"].axes[0].texts)
    counts = sorted(n for row in evaluation.candidate("int8").test.confusion for n in row if n)
    assert shown == counts


def test_recall_bars_are_the_changes_in_points(drawn, evaluation):
    teacher, mine = evaluation.teacher.test.recall, evaluation.candidate("int8").test.recall
    widths = sorted(bar.get_width() for bar in drawn["recall_change"].axes[0].patches)
    assert widths == pytest.approx(sorted(100 * (b - a) for a, b in zip(teacher, mine, strict=True)))


def test_what_was_not_measured_is_not_drawn(evaluation):
    bare = [one.model_copy(update={"served": {}, "test": None}) for one in evaluation.candidates]
    assert set(plots.all_plots(evaluation.model_copy(update={"candidates": tuple(bare)}), None)) == {"sizes"}


def test_png(drawn, tmp_path):
    plots.png(drawn["sizes"], tmp_path / "plots" / "sizes.png")
    assert (tmp_path / "plots" / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_svg_is_one_element_without_ink_of_its_own(drawn):
    text = plots.svg(drawn["reliability"])
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    assert "width" not in root.attrib and "height" not in root.attrib and "viewBox" in root.attrib
    assert "currentColor" in text and plots.INK not in text


def test_learning_curves_have_a_line_for_each_training(evidence):
    lines = plots.learning_curves(evidence["history"]).axes[0].lines
    assert [line.get_label() for line in lines] == ["train", "distill", "prune"]
    assert lines[0].get_ydata()[-1] == pytest.approx(89)
