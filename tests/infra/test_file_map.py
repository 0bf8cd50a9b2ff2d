"""The map of files in docs/architecture.md is the one that infra/file_map.py writes."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAP = runpy.run_path(str(ROOT / "infra" / "file_map.py"))


def test_the_map_is_current():
    page = MAP["PAGE"].read_text(encoding="utf-8")
    assert page == MAP["with_map"](page), "run `python infra/file_map.py` and commit docs/architecture.md"


def test_every_file_says_what_it_is():
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    assert [str(path.relative_to(ROOT)) for path in files if not MAP["first_line"](path)] == []
