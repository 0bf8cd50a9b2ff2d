"""Write the map of files into docs/architecture.md, from the first line of every file: ``python infra/file_map.py``."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- files:begin, written by `python infra/file_map.py` -->", "<!-- files:end -->"


def first_line(path: Path) -> str:
    """What a Python file says of itself in its first line; a bar in it would end a cell of the table."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0].replace("|", "\\|")


def rooms() -> list[Path]:
    """The packages of pipeline/, and pipeline/ itself, each before what is inside it."""
    return sorted({path.parent for path in (ROOT / "pipeline").rglob("__init__.py")})


def file_map() -> str:
    """The map as Markdown: a heading, the rule and a table of files for each room."""
    lines = []
    for room in rooms():
        files = sorted(path for path in room.glob("*.py") if path.name != "__init__.py")
        lines += [f"### {room.relative_to(ROOT)}/", "", first_line(room / "__init__.py"), ""]
        if files:
            lines += ["| file | what is in it |", "|---|---|"]
            lines += [f"| {path.name} | {first_line(path)} |" for path in files] + [""]
    return "\n".join(lines)


def with_map(page: str) -> str:
    """`page` with the present map between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{file_map()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
