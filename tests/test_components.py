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
from typing import Annotated, Literal
from pydantic import Field

@dataclass
class Inner:
    share: float
    sizes: tuple[int, ...] = ()

class Nested:
    def __init__(self, inner: Inner, mode: Literal[1, "auto"] = 1, least: int | Literal["auto"] = 1, free=None) -> None:
        self.inner, self.free = inner, free

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


# Types as strict as those of settings.


@pytest.mark.parametrize(
    ("kind", "name", "arguments", "sentence"),
    [
        ("losses", "kd", {"temperature": "3"}, "temperature is '3': Input should be a valid number"),
        ("losses", "kd", {"temperature": True}, "temperature is True: Input should be a valid number"),
        ("losses", "kd", {"temperature": float("inf")}, "temperature is inf: Input should be a finite number"),
        ("losses", "kd", {"alpha": float("nan")}, "alpha is nan: Input should be a finite number"),
        ("losses", "kd", {"alpha": None}, "alpha is None: Input should be a valid number"),
        ("pruners", "depth", {"drop": True}, "drop is True: Input should be a valid integer"),
        ("pruners", "depth", {"drop": "1"}, "drop is '1': Input should be a valid integer"),
        ("pruners", "depth", {"drop": 1.0}, "drop is 1.0: Input should be a valid integer"),
        ("quantizers", "int4", {"block_size": "32"}, "block_size is '32': Input should be 16, 32, 64 or 128"),
        (
            "models",
            "resnet",
            {"in_channels": 1, "classes": 10, "stem_stride": True},
            "stem_stride is True: Input should",
        ),
        ("models", "resnet", {"in_channels": 1, "classes": 10, "blocks": [1, True]}, "blocks.1 is True: Input should"),
        (
            "pruners",
            "channel",
            {"layer_ratios": {"stem.0": "0.5"}},
            "layer_ratios.stem.0 is '0.5': Input should be a valid",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_name_of_the_setting(kind, name, arguments, sentence):
    assert sentence in refusal(kind, name, **arguments)
    with pytest.raises(SettingsError) as caught:
        components.check(kind, name, arguments, "a.setting")
    assert str(caught.value).startswith(f"a.setting.{sentence}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"inner": {"share": "3"}}, "inner.share is '3': Input should be a valid number"),
        ({"inner": {"share": True}}, "inner.share is True: Input should be a valid number"),
        ({"inner": {"share": float("inf")}}, "inner.share is inf: Input should be a finite number"),
        ({"inner": {"share": 1, "sizes": [1, "2"]}}, "inner.sizes.1 is '2': Input should be a valid integer"),
        ({"inner": {}}, "inner.share is missing"),
        ({"inner": {"share": 1}, "mode": True}, "mode is True: Input should be a number"),
        ({"inner": {"share": 1}, "least": True}, "least is True: Input should be a valid integer, or: Input should be 'auto'"),
        ({"inner": {"share": 1}, "free": {"deep": [1, float("nan")]}}, "free.deep.1 is nan: Input should be a finite number"),
    ],
)  # fmt: skip
def test_nested_arguments_of_ones_own_are_as_strict(own, arguments, sentence):
    assert refusal("losses", "own_parts:Nested", **arguments) == f"losses.own_parts:Nested: {sentence}"


def test_integers_are_numbers_and_lists_are_tuples(own):
    made = components.build("losses", "own_parts:Nested", {"inner": {"share": 3, "sizes": [1, 2]}, "mode": "auto"})
    assert (made.inner.share, type(made.inner.share), made.inner.sizes) == (3.0, float, (1, 2))


@pytest.mark.parametrize("value", ["3", 3, 0.5, True, None, [1, "a"], {"a": [False]}])
def test_an_argument_without_an_annotation_takes_any_plain_value(own, value):
    made = components.build("losses", "own_parts:Nested", {"inner": {"share": 1}, "free": value})
    assert made.free == value
    assert type(made.free) is type(value)


def test_an_unknown_argument_is_refused_with_the_name_of_the_setting():
    with pytest.raises(
        SettingsError, match=r"^distill\.loss\.temprature: losses\.kd has no setting 'temprature'; it has"
    ):
        components.check("losses", "kd", {"temprature": 2}, "distill.loss")


def test_check_makes_nothing(own):
    assert components.check("losses", "own_parts:Focal", {"gamma": 101}) == {"gamma": 101.0, "sizes": [1]}
