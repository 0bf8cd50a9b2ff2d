"""The page: verdict on top, nothing to load, everything escaped, and whole even where the run is not."""

import re
from html.parser import HTMLParser

import pytest

from pipeline.evaluation import gate
from pipeline.report import page
from pipeline.report.table import table
from pipeline.settings.gate import Budget

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Collects text, tags and attributes, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def written(evidence):
    """The page of the run that went well: drawing it takes a second, so it is drawn once."""
    return page.page(evidence)


@pytest.fixture
def failed(evidence):
    """A run that ended in `train`."""
    stages = []
    for stage in evidence["stages"]:
        if stage["stage"] == "train":
            stages.append(stage | {"status": "failed", "reason": "train.fit.lr is 40: the loss is not a number"})
        elif stage["stage"] in {"prepare_data", "validate"}:
            stages.append(stage)
        else:
            stages.append(
                {
                    "stage": stage["stage"],
                    "run_id": None,
                    "status": "not run",
                    "reason": "",
                    "url": None,
                    "seconds": None,
                }
            )
    nothing = dict.fromkeys(("verdict", "evaluation", "baseline", "quantization", "engines", "promotion", "served"))
    return evidence | nothing | {"stages": stages, "history": {"train": None, "distill": None, "prune": None}}


def test_page_is_whole_and_loads_nothing(written):
    text, found = written, Reader(written)
    assert found.open == []
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    loads = [
        value
        for name, value in found.attributes
        if name in {"src", "xlink:href"} or (name == "href" and "use" in found.tags)
    ]
    assert not [value for value in loads if value.startswith(("http", "//")) and "127.0.0.1" not in value]
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_verdict_comes_first_with_every_limit(written, verdict):
    text = Reader(written).text
    assert text.index("PROMOTE winner: int8") < text.index("Teacher and proxies")
    assert all(check.text in text for standing in verdict.candidates for check in standing.checks)


def test_table_of_the_page_is_the_table(written, evaluation, verdict):
    text = Reader(written).text
    assert all(cell in text for row in table(evaluation, verdict).rows for cell in row.cells)


def test_steps_are_told_in_order_with_what_they_cost_and_gave(evaluation):
    steps = page.steps(evaluation)
    assert [(step.done, step.before, step.after) for step in steps] == [
        ("distilled", "teacher", "float proxy"), ("pruned", "float proxy", "pruned"), ("quantized", "pruned", "int8"),
        ("quantized", "pruned", "int8 for TensorRT"),
    ]  # fmt: skip
    teacher, student = evaluation.teacher, evaluation.candidate("student")
    change = 100 * (student.test.accuracy.value - teacher.test.accuracy.value)
    assert steps[0].cells == (f"{change:+.2f}", "309 k → 78 k", "30.6 M → 7.75 M", "1.25 MB → 321 kB", "4.1x", "3.2x")


def test_everything_recorded_is_on_the_page(written):
    text = Reader(written).text
    for words in ("skipped no GPU and no ahead-of-time", "reused", "run 4f1c… had the same settings", "5 min 12 s", "ab" * 32,
                  "git commit 33ea92e", "kept alone", "budget.accuracy_drop 0.025", "counts › train 55000",
                  "serve int8", "valid on any CPU", "fused integer ops 12",
                  "int8 is faster than float here", "AMD EPYC 9B14, 2 cores", "Validation accuracy while training"):  # fmt: skip
        assert words in text, words


def test_stages_link_to_their_runs(written, evidence):
    links = [value for name, value in Reader(written).attributes if name == "href"]
    assert all(stage["url"] in links for stage in evidence["stages"])
    assert evidence["parent_url"] in links and "http://127.0.0.1:8080/x" in links


def test_infeasible_says_what_misses_and_that_nothing_was_promoted(evidence, evaluation, monkeypatch):
    monkeypatch.setattr(page, "figures", lambda evidence: [])
    verdict = gate.decide(evaluation.teacher, evaluation.candidates, Budget(accuracy_drop=0.05, size_ratio=20), 0.95)
    text = Reader(page.page(evidence | {"verdict": verdict.model_dump(mode="json"), "promotion": None})).text
    assert "INFEASIBLE nearest: int8" in text
    assert f"{verdict.sentence.removeprefix('INFEASIBLE: ')}. Nothing was promoted; what is served stays." in text


def test_a_run_that_failed_early_shows_what_is_missing_and_why(failed):
    text = Reader(page.page(failed)).text
    because = "since train failed: train.fit.lr is 40: the loss is not a number"
    assert f"NO VERDICT evaluate has not run, {because}" in text
    assert f"Missing: promote has not run, {because}." in text
    assert "Missing: quantize has not run" in text and "No engine: build_tensorrt has not run" in text
    assert "Fashion" not in text and "fashion_mnist" in text  # what there is stays


def test_a_run_that_has_only_begun_has_a_page(evidence):
    text = Reader(page.page({"pipeline": "new", "stages": []})).text
    assert "NO VERDICT evaluate has not run" in text and "none has run" in text


def test_a_stage_that_failed_itself_says_so(evidence):
    stages = [
        s | {"status": "failed", "reason": "Triton is down"} if s["stage"] == "evaluate" else s
        for s in evidence["stages"]
    ]
    assert page.missing(evidence | {"stages": stages}, "evaluate") == "evaluate failed: Triton is down"
    assert page.missing(evidence, "build_tensorrt").startswith("build_tensorrt was skipped: no GPU")


def test_nothing_that_a_run_recorded_becomes_markup(evidence, evaluation):
    evil = '<script>alert("1")</script>'
    hurt = evaluation.model_copy(update={"labels": (evil, *evaluation.labels[1:])})
    stages = [evidence["stages"][0] | {"reason": evil, "url": "javascript:alert(1)"}]
    text = page.page(
        evidence
        | {"pipeline": evil, "settings": {evil: evil}, "stages": stages, "evaluation": hurt.model_dump(mode="json")}
    )
    assert "<script" not in text and "javascript:" not in text
    assert "&lt;script&gt;" in text


def test_summary_is_the_verdict_and_the_table(evidence, failed):
    text = page.summary(evidence)
    assert text.startswith("**PROMOTE**: int8: accuracy drop")
    assert "| test accuracy |" in text
    assert page.summary(failed).startswith("**NO VERDICT**: evaluate has not run, since train failed")
