"""The rooms of `pipeline/` and which way they may lean on each other: a room imports only from rooms of lower levels."""

import ast
from pathlib import Path

import pytest

PIPELINE = Path(__file__).resolve().parents[1] / "pipeline"

LEVELS = {
    "__init__": 0,
    "errors": 0,
    "components": 0,
    "files": 0,
    "graph": 0,
    "protocols": 0,
    "renamed": 0,
    "machine": 0,
    "settings": 1,
    "records": 1,
    "models": 1,
    "progress": 1,
    "evaluation": 2,
    "export": 2,
    "report": 2,
    "tracking": 2,
    "training.distributed": 2,
    "data": 3,
    "runners": 3,
    "compression": 4,
    "serving": 4,
    "serving.triton": 4,
    "training": 5,
    "serving.promotion": 5,
    "serving.load": 5,
    "services": 5,
    "stages": 6,
    "cli": 7,
    "__main__": 8,
}
"""Room, or file at the root -> its level."""
BESIDE = {"errors", "components", "files", "graph", "protocols", "renamed", "machine", "__init__"}
"""The words of level 0: they may lean on each other, and so may the files of one room."""


def room_of(module):
    """The longest name in LEVELS that `module`, without ``pipeline.``, begins with."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVELS), None)


def files():
    return sorted(PIPELINE.rglob("*.py"))


def module_of(path):
    parts = path.relative_to(PIPELINE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path):
    """(line, module without ``pipeline.``) of every import of ours in a file, wherever in it, except for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pipeline":
            inside = node.module.removeprefix("pipeline").removeprefix(".")
            for alias in node.names:
                full = f"{inside}.{alias.name}" if inside else alias.name
                target = PIPELINE / full.replace(".", "/")
                is_module = target.with_suffix(".py").exists() or target.is_dir()
                yield node.lineno, full if is_module else inside or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pipeline":
                    yield node.lineno, alias.name.removeprefix("pipeline").removeprefix(".") or "__init__"


def wrong_ways(path):
    here = room_of(module_of(path))
    found = []
    for line, module in imports(path):
        there = room_of(module)
        if here != there and not {here, there} <= BESIDE and LEVELS[there] >= LEVELS[here]:
            found.append(
                f"{path.relative_to(PIPELINE.parent)}:{line} imports pipeline.{module}: {here} is on level "
                f"{LEVELS[here]} and may import only from below it, {there} is on level {LEVELS[there]}"
            )
    return found


def test_every_file_is_in_a_room():
    assert [str(path) for path in files() if room_of(module_of(path)) is None] == []


def test_imports_point_to_lower_levels():
    assert [sentence for path in files() for sentence in wrong_ways(path)] == []


def test_no_stage_imports_another():
    stages = [path for path in files() if path.parent.name == "stages"]
    found = [
        f"{path.relative_to(PIPELINE.parent)}:{line} imports pipeline.{module}"
        for path in stages
        for line, module in imports(path)
        if module.startswith("stages.") and path.stem != "__init__"
    ]
    assert found == []


def test_no_file_imports_itself_in_a_circle():
    edges = {module_of(path): {module for _, module in imports(path)} for path in files()}
    done, circles = set(), []

    def follow(module, way):
        if module in way:
            circles.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                follow(target, [*way, module])
            done.add(module)

    for module in edges:
        follow(module, [])
    assert circles == []


def test_the_root_holds_no_more_than_what_every_room_uses():
    assert len([path for path in PIPELINE.iterdir() if path.is_file()]) <= 8


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_a_file_is_short_enough_to_be_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
