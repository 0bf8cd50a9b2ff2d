"""Every recipe that is shipped loads, and every component that it names can be made with its arguments."""

import re
from pathlib import Path

import pytest

from pipeline.settings import parse
from pipeline.settings.base import Component

FILES = sorted((Path(__file__).resolve().parents[2] / "recipes").iterdir())
each_recipe = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_there_are_the_three_that_the_docs_name():
    assert parse.recipes() == [path.stem for path in FILES] == ["demo", "digits", "full"]


@each_recipe
def test_it_loads_and_changes_something(path):
    assert parse.load(path.stem) != parse.load()


@each_recipe
def test_line_one_is_a_command_that_runs_it(path):
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    assert re.match(rf"# (make {path.stem}|flyweight all --recipe {path.stem})  +\S", line), line


@each_recipe
def test_its_components_can_be_made(path):
    for key, kind, component in parse.load(path.stem).components():
        given = {"in_channels": 1, "classes": 10} if kind == "models" else {}
        made = Component(name=component.name, **given, **component.arguments).build(kind)
        assert callable(made), key


@each_recipe
def test_its_student_is_narrower_than_its_teacher(path):
    settings = parse.load(path.stem)
    assert settings.distill.model.arguments["width"] < settings.train.model.arguments["width"]


@each_recipe
def test_its_data_set_has_its_split_and_its_class(path):
    from pipeline import components

    settings = parse.load(path.stem)
    assert settings.data.dataset in settings.datasets
    assert settings.data.dataset in components.names("datasets")
