"""Which files and packages a module needs, by its imports and theirs, found without importing any.

Followed are imports anywhere in a file, also inside functions, but not those for types alone; strings that name a module,
as ``"pipeline.training.job:run"`` handed to a worker does; all modules of a package from which one is taken by a name made
at run time (``f"pipeline.some.package.{name}"``); components named in the code (``find("losses", "kd")``); and files beside a
module whose names stand in it, such as templates. A module of the Python installation ends the search as a package.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path

from pipeline import components
from pipeline.files import write_json
from pipeline.machine import places

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(:[A-Za-z_]\w*)?")
_COMPONENT = re.compile(r"[A-Za-z_]\w*|[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FILE = re.compile(r"[\w-][\w./-]*\.\w+")


@dataclass(frozen=True)
class Closure:
    """What a module needs."""

    files: dict[str, Path]
    """Module, or module and the name of a file beside it -> source."""
    packages: frozenset[str]
    """Top-level names of installed packages that these files import; without the standard library."""


@dataclass(frozen=True)
class _Names:
    """What one file mentions."""

    imported: frozenset[str]
    """``a.b.c`` for ``import a.b.c`` and for ``from a.b import c``, where c may be no module; relative ones begin with dots."""
    quoted: frozenset[str]
    """Strings that have the form of a module's name."""
    packages: frozenset[str]
    """Packages of which any module may be imported."""
    files: frozenset[str]
    """Strings that have the form of a file's name."""


def closure(starts: Iterable[str], neutral: Collection[str] = ()) -> Closure:
    """Return what the modules `starts` need; what is in `neutral`, or below it, is left out with all that it needs."""
    starts = list(starts)
    owned = {name.partition(".")[0] for name in starts}
    files: dict[str, Path] = {}
    packages: set[str] = set()
    waiting = starts
    while waiting:
        name = waiting.pop()
        if name in files or any(name == one or name.startswith(f"{one}.") for one in neutral):
            continue
        top = name.partition(".")[0]
        if top not in owned and not _is_source(top):
            if top not in sys.stdlib_module_names:
                packages.add(top)
            continue
        path = _locate(name)
        if path is None:  # a class or function of the module that is named before it, or a module that is missing
            continue
        files[name] = path
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs the packages that it is in
        found = _names(path)
        waiting += [one for relative in found.imported for one in _absolute(relative, name, path)]
        waiting += [one for one in found.quoted if one.partition(".")[0] in owned]
        waiting += [one for package in found.packages for one in _modules_of(package)]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for file in found.files:
            if file.endswith(".py"):
                waiting.append(".".join([package, *file.removesuffix(".py").split("/")]).strip("."))
            elif (path.parent / file).is_file():
                files[f"{name}/{file}"] = path.parent / file
    return Closure(dict(sorted(files.items())), frozenset(packages))


def _absolute(name: str, importer: str, path: Path) -> Iterator[str]:
    """The modules that an imported name may mean: itself and the one before its last dot."""
    if dots := len(name) - len(name.lstrip(".")):
        parts = importer.split(".")
        kept = len(parts) - dots + (path.name == "__init__.py")
        name = ".".join([*parts[:kept], name[dots:]]).strip(".")
    yield name
    if "." in name:
        yield name.rpartition(".")[0]


def _modules_of(package: str) -> Iterator[str]:
    path = _locate(package)
    if path is not None and path.name == "__init__.py":
        yield package
        yield from (f"{package}.{file.stem}" for file in path.parent.glob("*.py") if file.stem != "__init__")


def _locate(name: str) -> Path | None:
    """The file of a module of ours or the user's; of a directory without ``__init__.py``, as of what is no module, None."""
    top, *rest = name.split(".")
    for folder, file in _tops(top):
        if not rest:
            return file
        path = folder.joinpath(*rest)
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


@lru_cache(maxsize=256)
def _tops(top: str) -> tuple[tuple[Path, Path | None], ...]:
    """(directory of its modules, file of its own) of a top-level name, as Python would find it."""
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if found is None:
        return ()
    origin = Path(found.origin) if found.has_location and found.origin else None
    if found.submodule_search_locations is None:
        return ((origin.parent / "no such folder", origin),) if origin and origin.suffix == ".py" else ()
    return tuple((Path(folder), origin) for folder in found.submodule_search_locations)


@cache
def _is_source(top: str) -> bool:
    """Whether a top-level name is a user's own source: neither of Python itself nor among the installed packages."""
    if top in sys.stdlib_module_names:
        return False
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib", "platstdlib")]
    places = [file or folder for folder, file in _tops(top)]
    return bool(places) and not any(place.resolve().is_relative_to(one) for place in places for one in installed)


def _names(path: Path) -> _Names:
    return _read(path.read_bytes())


@lru_cache(maxsize=1024)
def _read(source: bytes) -> _Names:
    """What a file of these bytes mentions. Each stage asks for dozens of files: it is kept for the next process."""
    kept = places.cache() / "imports" / f"{hashlib.sha256(_own_hash() + source).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # missing or spoilt
        return _Names(**{name: frozenset(found) for name, found in json.loads(kept.read_bytes()).items()})
    reader = _Reader()
    with contextlib.suppress(SyntaxError):  # the stage itself will say so, when it imports the file
        reader.visit(ast.parse(source))
    found = _Names(
        frozenset(reader.imported), frozenset(reader.quoted), frozenset(reader.packages), frozenset(reader.files)
    )
    with contextlib.suppress(OSError):  # where it cannot be kept, it is found again
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {field.name: sorted(getattr(found, field.name)) for field in fields(found)})
    return found


@cache
def _own_hash() -> bytes:
    """The hash of this file: what another version of it has kept does not count."""
    return hashlib.sha256(Path(__file__).read_bytes()).digest()


class _Reader(ast.NodeVisitor):
    """Collects what one file mentions."""

    def __init__(self) -> None:
        self.imported: set[str] = set()
        self.quoted: set[str] = set()
        self.packages: set[str] = set()
        self.files: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        for part in (
            node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else [node.test, *node.body, *node.orelse]
        ):
            self.visit(part)

    def visit_Import(self, node: ast.Import) -> None:
        self.imported |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = "." * node.level + (node.module or "")
        between = "." if node.module else ""
        self.imported |= {base if alias.name == "*" else f"{base}{between}{alias.name}" for alias in node.names}

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str) or len(node.value) > 200:
            return
        if _MODULE.fullmatch(node.value):
            self.quoted.add(node.value.partition(":")[0])
        if _FILE.fullmatch(node.value):
            self.files.add(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        parts: list[str] = []  # of a path: Path(__file__).parent / "backend" / "model.py"
        left: ast.expr = node
        while isinstance(left, ast.BinOp) and isinstance(left.op, ast.Div) and isinstance(left.right, ast.Constant):
            parts.insert(0, str(left.right.value))
            left = left.left
        if len(parts) > 1 and _FILE.fullmatch("/".join(parts)):
            self.files.add("/".join(parts))
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        first = node.values[0] if node.values else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.endswith("."):
            package = first.value.removesuffix(".")
            if _MODULE.fullmatch(package):
                self.packages.add(package)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if (
            called in {"find", "build"}
            and len(texts) == 2
            and texts[0] in components.KINDS
            and _COMPONENT.fullmatch(texts[1])
        ):
            self.quoted.add(module_of(*texts))
        self.generic_visit(node)


def module_of(kind: str, name: str) -> str:
    """Return the module of the component `name` of `kind`: a built-in one, or the user's ``package.module:Name``."""
    module, colon, _ = name.partition(":")
    return module if colon else f"pipeline.{components.KINDS[kind]}.{name}"
