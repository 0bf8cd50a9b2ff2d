"""Words that were retired do not come back: what is written for people uses the field's terms (CONTRIBUTING, Words)."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RETIRED = {
    r"\banew\b": "again",
    r"\bhand-?overs?\b": "artifact reuse",
    r"\bput(s|ting)? right\b": "repair",
    r"\bmend(s|ed|ing)?\b": "repair, fix",
    r"\bjudge[sd]?\b|\bjudging\b": "evaluate, score",
    r"\bgoes before\b|\bgo before\b": "takes precedence over",
    r"\bhangs? together\b": "coupled",
    r"\bdoomed\b": "to be removed",
    r"\bdearest\b": "most sensitive",
    r"\bcut off at\b": "saturated to",
    r"\bask(s|ed|ing)? the teacher\b|\bask_teacher\b": "precompute the teacher's logits",
    r"\bhold_zeros\b": "keep_sparsity",
    r"\b(images|seconds|epochs|files?|requests|rows|steps|components?|stages?) an? "
    r"(second|minute|step|kind|image|stage|file|process|class)\b": "per",
    r"\bcopies of (a|the|each|every) model\b": "instances",
}
"""What must not be written -> what to write instead."""

ALLOWED = {
    ("CONTRIBUTING.md", "hand-over"),  # the glossary's example
    ("pipeline/serving/promotion/ledger.py", "mended"),  # what older ledgers say
}
"""(file, word) that stay."""

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted(path for folder in ("pipeline", "dags") for path in (ROOT / folder).rglob("*.py"))


def texts(path):
    """(line, text) of everything in a file that a person reads; of Python the strings, comments and names."""
    if path.suffix == ".md":
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        return
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT, tokenize.NAME, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


ANY = re.compile("|".join(RETIRED), re.IGNORECASE)


def retired_in(path):
    if not ANY.search(path.read_text(encoding="utf-8")):
        return []  # few files need to be taken apart
    return [
        f"{path.relative_to(ROOT)}:{number}: {found[0]!r}: write {instead!r}"
        for number, text in texts(path)
        for pattern, instead in RETIRED.items()
        if (found := re.search(pattern, text, re.IGNORECASE)) and (str(path.relative_to(ROOT)), found[0]) not in ALLOWED
    ]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_retired_word(path):
    assert retired_in(path) == []


def test_a_retired_word_is_found_with_what_to_write(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text('"""Built anew."""\n')
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert retired_in(tmp_path / "x.py") == ["x.py:1: 'anew': write 'again'"]
