"""Code of a user that was written to the documentation works on under the former names of modules."""

import importlib
import subprocess
import sys

import pytest

from pipeline import renamed

DOCUMENTED = [
    ("pipeline.data", "open_split"),
    ("pipeline.model_spec", "PruningStep"),
    ("pipeline.proof", "prove"),
    ("pipeline.serving.client", "Client"),
    ("pipeline.surgery", "widths"),
    ("pipeline.losses.kd", "KD"),
    ("pipeline.models.resnet", "ResNet"),
    ("pipeline.types", "Dataset"),
    ("pipeline.progress", "report"),
]


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_what_the_documentation_imported_is_still_there(module, name):
    sys.modules.pop(module, None) if module not in ("pipeline.data", "pipeline.progress") else None
    with pytest.warns(DeprecationWarning, match=rf"^{module}\S* is now pipeline\.\S+; the old name will go$"):
        found = getattr(importlib.import_module(module), name)
    assert found.__module__.startswith("pipeline.")


@pytest.mark.parametrize(("old", "new"), renamed.MODULES.items())
def test_a_former_name_is_the_same_module(old, new):
    with pytest.warns(DeprecationWarning) if f"pipeline.{old}" not in sys.modules else pytest.MonkeyPatch.context():
        module = importlib.import_module(f"pipeline.{old}")
    assert module is importlib.import_module(f"pipeline.{new}")
    assert module.__spec__.name == f"pipeline.{new}"


def test_names_of_modules_that_became_folders():
    for package, names in renamed.NAMES.items():
        for name, where in names.items():
            with pytest.warns(DeprecationWarning):
                found = getattr(importlib.import_module(f"pipeline.{package}"), name)
            assert found is getattr(importlib.import_module(f"pipeline.{where}"), name)


@pytest.mark.parametrize(
    "name", ["pipeline.no_such", "pipeline.lossesless", "pipeline.losses.no_such", "types_of_mine"]
)
def test_what_never_was_is_not_found(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_it_costs_nothing_and_warns_where_the_import_stands(tmp_path):
    lines = (
        "import sys",
        "import pipeline",
        "print('torch' in sys.modules)",
        "import pipeline.errors",
        "import pipeline.types",
    )
    (tmp_path / "own.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, tmp_path / "own.py"], capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert "own.py:5: DeprecationWarning: pipeline.types is now pipeline.protocols" in done.stderr
