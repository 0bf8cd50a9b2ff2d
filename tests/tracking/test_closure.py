"""What a module needs is found by its source: nothing is imported, nothing that it needs is missed, nothing else is in."""

import ast
import sys

import pytest

from pipeline.tracking.closure import _Reader, closure, module_of


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """write({"a.py": "import json"}) -> the name of a package of these files that Python would find."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"fake_{abs(hash(request.node.name))}"

    def write(files, name=name):
        for path, text in {"__init__.py": "", **files}.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("PACKAGE", name))
        return name

    return write


def found(name, *starts, neutral=()):
    """The modules of the package, without its own name and those of packages."""
    result = closure([f"{name}.{start}" for start in starts], [f"{name}.{one}" for one in neutral])
    return {one.removeprefix(f"{name}.") for one, path in result.files.items() if path.name != "__init__.py"}


@pytest.mark.parametrize(
    "text",
    [
        "import PACKAGE.needed",
        "from PACKAGE import needed",
        "from PACKAGE.needed import f",
        "from . import needed",
        "from .needed import f",
        "def f():\n    from PACKAGE import needed",
        "run('PACKAGE.needed:f')",
        "command = ['-m', 'PACKAGE.needed']",
        "if True:\n    import PACKAGE.needed",
        "try:\n    import json\nexcept ImportError:\n    from PACKAGE.needed import *",
        "from pathlib import Path\nCODE = Path(__file__).with_name('needed.py')",
    ],
)
def test_every_way_to_need_a_module_is_seen(package, text):
    name = package({"start.py": text, "needed.py": "", "other.py": ""})
    assert found(name, "start") == {"start", "needed"}


@pytest.mark.parametrize(
    "text",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import PACKAGE.needed",
        "import typing\nif typing.TYPE_CHECKING:\n    import PACKAGE.needed",
        "# import PACKAGE.needed",
        "'''See PACKAGE.needed for more.'''",
    ],
)
def test_what_is_only_for_types_or_readers_is_not_followed(package, text):
    name = package({"start.py": text, "needed.py": "", "other.py": ""})
    assert found(name, "start") == {"start"}


def test_imports_of_imports_are_followed_in_circles_too(package):
    name = package(
        {"a.py": "import PACKAGE.b", "b.py": "from PACKAGE.c import x", "c.py": "import PACKAGE.a", "d.py": ""}
    )
    assert found(name, "a") == {"a", "b", "c"}


def test_the_packages_around_a_module_run_with_it(package):
    name = package(
        {"a.py": "import PACKAGE.deep.b", "deep/__init__.py": "from PACKAGE import c", "deep/b.py": "", "c.py": ""}
    )
    assert found(name, "a") == {"a", "deep.b", "c"}


def test_relative_imports_climb_from_packages_and_modules_alike(package):
    files = {
        "deep/__init__.py": "from . import b",
        "deep/b.py": "from ..c import x\nfrom .. import d",
        "c.py": "",
        "d.py": "",
    }
    assert found(package(files), "deep.b") == {"deep.b", "c", "d"}


def test_a_name_made_at_run_time_takes_the_whole_package_it_is_from(package):
    text = "import importlib\ndef f(name):\n    return importlib.import_module(f'PACKAGE.kinds.{name}')"
    name = package({"a.py": text, "kinds/__init__.py": "", "kinds/one.py": "", "kinds/two.py": "", "other.py": ""})
    assert found(name, "a") == {"a", "kinds.one", "kinds.two"}


def test_a_file_beside_a_module_counts_where_the_module_names_it(package):
    text = "from pathlib import Path\nPAGE = Path(__file__).parent / 'pages' / 'page.html'\nOTHER = 'text.txt'"
    files = {"a.py": text, "pages/page.html": "<p>", "text.txt": "", "unnamed.html": ""}
    assert found(package(files), "a") == {"a", "a/pages/page.html", "a/text.txt"}


def test_what_is_neutral_is_left_out_with_all_that_it_needs(package):
    name = package(
        {"a.py": "import PACKAGE.quiet.b, PACKAGE.c", "quiet/b.py": "import PACKAGE.d", "c.py": "", "d.py": ""}
    )
    assert found(name, "a", neutral=["quiet"]) == {"a", "c"}


def test_installed_packages_are_named_and_the_standard_library_is_not(package):
    name = package({"a.py": "import json, os.path\nimport numpy as np\nfrom google.protobuf import message"})
    assert closure([f"{name}.a"]).packages == {"numpy", "google"}


def test_a_neighbour_of_the_users_own_is_followed_as_source(package, tmp_path):
    neighbour = package({"tools.py": "import PACKAGE.more", "more.py": ""}, name="fake_neighbour")
    name = package({"a.py": f"from {neighbour} import tools\nimport fake_single_file"})
    (tmp_path / "fake_single_file.py").write_text("")
    files = closure([f"{name}.a"]).files
    assert {f"{neighbour}.tools", f"{neighbour}.more", "fake_single_file"} <= set(files)


def test_nothing_is_imported(package):
    name = package({"a.py": "raise SystemExit('imported')"})
    assert found(name, "a") == {"a"}
    assert name not in sys.modules


def test_a_file_that_changes_is_read_again(package, tmp_path):
    name = package({"a.py": "", "b.py": ""})
    assert found(name, "a") == {"a"}
    (tmp_path / name / "a.py").write_text("import " + name + ".b  # longer")
    assert found(name, "a") == {"a", "b"}


def test_a_file_with_a_mistake_and_a_missing_module_are_left_to_the_stage(package):
    name = package({"a.py": "def (", "b.py": "import PACKAGE.missing"})
    assert found(name, "a", "b") == {"a", "b"}
    assert closure(["fake_that_is_nowhere.module"]).files == {}


def test_components_named_in_the_code_are_followed():
    reader = _Reader()
    reader.visit(ast.parse("components.find('losses', 'kd'); build('losses', name); find('a', 'b')"))
    assert reader.quoted == {"pipeline.training.losses.kd"}
    assert module_of("losses", "mine.losses:Focal") == "mine.losses"
