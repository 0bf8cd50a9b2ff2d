"""Components are found by file name, bound to their arguments, and refused in words that help."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import components
from pipeline.errors import SettingsError

ROOT = Path(__file__).resolve().parents[1]

OWN = '''
from dataclasses import dataclass
from typing import Annotated
from pydantic import Field

class Focal:
    """A component of someone's own."""
    def __init__(self, gamma: Annotated[float, Field(ge=0.0)], sizes: list[int] = [1]) -> None:
        if gamma > 100:
            raise ValueError("gamma above 100 is never meant")
        self.gamma, self.sizes = gamma, sizes

@dataclass
class Plain:
    rate: int = 3

def make(rate: int = 3) -> dict:
    return {"rate": rate}
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `own_parts` on the path, as a user's package would be."""
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_parts", None)


def refusal(kind, name, **arguments):
    with pytest.raises(SettingsError) as caught:
        components.build(kind, name, arguments)
    return str(caught.value)


@pytest.mark.parametrize("kind", components.KINDS)
def test_the_file_name_is_the_name(kind):
    files = {path.stem for path in (ROOT / "pipeline" / components.KINDS[kind].replace(".", "/")).glob("*.py")}
    assert components.names(kind) == sorted(stem for stem in files if not stem.startswith("_"))
    for name in components.names(kind):
        components.check_name(kind, name)


def test_names_imports_no_component():
    code = (
        "import sys; from pipeline import components; print([components.names(k) != 0 for k in components.KINDS].count(0),"
        "[m for m in sys.modules if m.startswith(tuple(f'pipeline.{k}.' for k in components.KINDS.values()))], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "0 [] False", done.stderr


def test_find_returns_what_the_file_names_as_its_component():
    from pipeline.training.losses import kd

    assert components.find("losses", "kd") is kd.COMPONENT is kd.KD


def test_a_component_is_made_with_its_arguments_and_its_own_defaults():
    loss = components.build("losses", "kd", {"temperature": 2})
    assert (loss.temperature, loss.alpha) == (2.0, 0.9)


def test_an_unknown_kind():
    with pytest.raises(SettingsError) as caught:
        components.names("loss")
    kinds = "datasets, models, losses, pruners, quantizers"
    assert str(caught.value) == f"unknown kind of component 'loss'; kinds: {kinds}; did you mean 'losses'?"


def test_an_unknown_name():
    text = refusal("models", "resnt")
    assert text.startswith("there is no 'resnt' in models; there are: ")
    assert text.endswith("; did you mean 'resnet'? (your own is written as 'package.module:Name')")


@pytest.mark.parametrize("name", ["../kd", "kd.py", "_columns", ":Focal", "own_parts:", "own parts:Focal", "a:b:c", ""])
def test_a_name_that_is_neither_a_file_nor_a_path(name):
    assert f"there is no {name!r} in losses" in refusal("losses", name)


def test_an_unknown_argument():
    assert (
        refusal("losses", "kd", temprature=2)
        == "losses.kd has no setting 'temprature'; it has: temperature, alpha; did you mean 'temperature'?"
    )


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        ({"temperature": 0}, ["temperature is 0: Input should be greater than 0"]),
        ({"alpha": "much"}, ["alpha is 'much': Input should be a valid number"]),
        (
            {"temperature": -1, "alpha": 2},
            ["temperature is -1: ", "alpha is 2: Input should be less than or equal to 1"],
        ),
    ],
)
def test_arguments_out_of_range_are_all_named(arguments, sentences):
    text = refusal("losses", "kd", **arguments)
    assert text.startswith("losses.kd: ")
    assert all(sentence in text for sentence in sentences)


def test_an_argument_inside_a_list():
    text = refusal("models", "resnet", in_channels=1, classes=10, blocks=[1, 0])
    assert text == "models.resnet: blocks.1 is 0: Input should be greater than or equal to 1"


def test_a_missing_argument():
    assert refusal("models", "resnet", classes=10) == "models.resnet: in_channels is missing"


def test_a_class_of_ones_own(own):
    focal = components.build("losses", "own_parts:Focal", {"gamma": 2})
    assert (type(focal).__name__, focal.gamma, focal.sizes) == ("Focal", 2.0, [1])


def test_a_dataclass_or_a_function_of_ones_own(own):
    assert components.build("losses", "own_parts:Plain", {"rate": 4}).rate == 4
    assert components.build("losses", "own_parts:make", {}) == {"rate": 3}


def test_ones_own_is_held_to_its_annotations_too(own):
    assert refusal("losses", "own_parts:Focal", gama=1).endswith("it has: gamma, sizes; did you mean 'gamma'?")
    assert refusal("losses", "own_parts:Focal") == "losses.own_parts:Focal: gamma is missing"
    assert "gamma is -1" in refusal("losses", "own_parts:Focal", gamma=-1)
    assert refusal("losses", "own_parts:Focal", gamma=101).endswith("gamma above 100 is never meant")


@pytest.mark.parametrize("name", ["own_parts:Fokal", "own_missing:Focal", "own_broken:Focal"])
def test_ones_own_that_cannot_be_loaded(own, name):
    text = refusal("losses", name)
    assert text.startswith(f"losses: cannot load {name!r}: ")
    assert text.endswith("Is its package installed beside Flyweight?")
