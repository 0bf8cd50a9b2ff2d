"""The table's numbers are those of the evaluation, and it names what it leaves out."""

import pytest
from rich.console import Console

from pipeline.report import table


def cells(content, label, nth=0):
    """The cells of the nth row with this label, by candidate."""
    row = [row for row in content.rows if row.label.strip() == label][nth]
    return dict(zip(content.names, row.cells, strict=True))


@pytest.fixture
def content(evaluation, verdict):
    return table.table(evaluation, verdict)


def test_columns_are_the_candidates_in_order_with_the_student_called_float_proxy(content):
    assert content.names == ("teacher", "student", "pruned", "int8", "int8_tensorrt")
    assert content.titles == ("teacher", "float proxy", "pruned", "int8", "int8 for TensorRT")


def test_ratios_are_against_the_teacher_and_the_teacher_has_none(content):
    assert cells(content, "file") | {"student": "", "pruned": "", "int8_tensorrt": ""} == {
        "teacher": "1.25 MB", "student": "", "pruned": "", "int8": "68 kB (18.3x)", "int8_tensorrt": "",
    }  # fmt: skip
    assert cells(content, "offline, batch 64: images/s")["int8"] == "11,800 (14.4x)"
    assert cells(content, "Triton, 64 at once: images/s")["pruned"] == "2,500 ± 138 (4.2x)"
    assert cells(content, "parameters")["student"] == "78 k (4.0x)"


def test_accuracy_is_that_of_the_test_split_with_half_its_interval(content, evaluation):
    found = evaluation.candidate("int8").test.accuracy
    assert cells(content, "test accuracy")["int8"] == f"{100 * found.value:.2f} % ± {50 * (found.high - found.low):.2f}"


def test_worst_class_is_the_one_that_lost_most(content, evaluation):
    changes = dict(table.recall_changes(evaluation, evaluation.candidate("int8")))
    label = min(changes, key=changes.get)
    assert cells(content, "worst class, points")["int8"] == f"{label} {changes[label]:+.1f}"


def test_last_row_says_how_each_stands_at_the_gate(content):
    assert cells(content, "budget") == {
        "teacher": "reference", "student": "misses 3 of 5 limits", "pruned": "misses 3 of 5 limits", "int8": "PROMOTE",
        "int8_tensorrt": "not eligible",
    }  # fmt: skip


def test_what_was_not_measured_is_a_dash(content):
    assert cells(content, "Triton, 64 at once: images/s")["int8_tensorrt"] == table.NOTHING
    assert cells(content, "accuracy drop, points")["teacher"] == table.NOTHING


def test_failed_requests_are_counted_beside_the_latency(evaluation):
    def spoiled(one):
        served = {level: load.model_copy(update={"failures": 3}) for level, load in one.served.items()}
        return one.model_copy(update={"served": served})

    changed = evaluation.model_copy(update={"candidates": tuple(map(spoiled, evaluation.candidates))})
    assert cells(table.table(changed), "p50 / p99, ms", nth=-1)["int8"].endswith(", 3 failed")


def test_terminal_table_leaves_out_what_is_not_served_and_says_so(evidence):
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table.rich_table(evidence))
    text = " ".join(captured.get().split())
    assert "PROMOTE: int8: accuracy drop" in text
    assert "int8 for TensorRT: not measured through Triton: its graph is written for TensorRT" in text
    assert text.count("int8 for TensorRT") == 1


def test_terminal_has_a_sentence_where_there_is_no_table(evidence):
    text = table.rich_table(evidence | {"evaluation": None})
    assert text == "there is no table: the stage `evaluate` has measured nothing in this pipeline run"


def test_markdown_has_a_line_for_each_row(content):
    lines = table.markdown(content).splitlines()
    assert lines[0] == "| | teacher | float proxy | pruned | int8 | int8 for TensorRT |"
    assert len(lines) == len(content.rows) + 2


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (46_500, "46.5 k"), (30_600_000, "30.6 M"), (2.5e9, "2.5 G")]
)
def test_count(number, text):
    assert table.count(number) == text
