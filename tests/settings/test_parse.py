"""Recipes, overlays and `--set`: what overlays what, and what cannot be read."""

from pathlib import Path

import pytest
from settings_toys import refusal

from pipeline.errors import SettingsError
from pipeline.settings import parse
from pipeline.settings.training import Fit

ROOT = Path(__file__).resolve().parents[2]


# Recipes and what DVC pins.


def test_an_unknown_recipe():
    assert refusal(recipe="dmeo") == "there is no recipe 'dmeo'; recipes/ has: demo, digits, full; did you mean 'demo'?"


@pytest.mark.parametrize("key", ["datasets", "datasets.digits.split_seed", "datasets.digits"])
def test_datasets_are_pinned(key):
    assert (
        refusal({key: {}}) == f"{key}: 'datasets' is pinned by dvc.lock; edit params.yaml and run `dvc repro` instead"
    )


def test_a_recipe_cannot_change_datasets_either(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "params.yaml").write_text("datasets: {digits: {validation_images: 180}}\n")
    (tmp_path / "recipes" / "bad.yaml").write_text("datasets: {digits: {validation_images: 10}}\n")
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    assert refusal(recipe="bad").startswith("recipes/bad.yaml: 'datasets' is pinned by dvc.lock;")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "params.yaml is not YAML: "),
        ("a: 1\nb: 2\na: 3", 'params.yaml is not YAML: line 3, column 1: found duplicate key "a" with value "3"'),
        ("[a]: 1", "the name of a setting must be text: "),
        ("- 1\n- 2", "params.yaml must hold sections of settings, not a list"),
        ("datasets: {digits: {validation_image: 3}}", "datasets.digits.validation_images is missing"),
        ("datasets: {digits: {validation_image: 3}}", "datasets.digits has no 'validation_image'; allowed: "),
    ],
)
def test_a_params_yaml_that_cannot_be_read(tmp_path, monkeypatch, text, message):
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    assert message in refusal()


def test_no_params_yaml_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    assert refusal().endswith("No such file or directory; run from the repository or set FLYWEIGHT_ROOT")


# What overlays what.


def test_later_wins():
    assert parse.load().train.fit.batch_size == Fit().batch_size
    assert parse.load("digits").train.fit.batch_size == 64
    assert parse.load("digits", {"train.fit.batch_size": 32}).train.fit.batch_size == 32
    assert parse.load("digits", {"train.fit.batch_size": 32}).train.fit.epochs == parse.load("digits").train.fit.epochs


def test_one_argument_of_a_component_can_be_changed_alone():
    for recipe in (None, "demo"):
        loss = parse.load(recipe, {"distill.loss.temperature": 2.0}).distill.loss
        assert (loss.name, loss.arguments) == ("kd", {"temperature": 2.0, "alpha": 0.9})


def test_a_new_name_drops_the_arguments_of_the_old_one():
    loss = parse.load("demo", {"distill.loss.name": "mine:Loss"}).distill.loss
    assert (loss.name, loss.arguments) == ("mine:Loss", {})


def test_arguments_of_a_new_component_may_stand_before_its_name():
    for order in (("beta", "name"), ("name", "beta")):
        values = {"beta": 8, "name": "mine:Loss"}
        loss = parse.load("demo", {f"distill.loss.{key}": values[key] for key in order}).distill.loss
        assert loss.arguments == {"beta": 8}


def test_a_list_is_replaced_not_merged():
    assert parse.load("demo", {"train.model.blocks": [2]}).train.model.arguments["blocks"] == [2]
    assert parse.load("demo", {"evaluate.concurrency": [4]}).evaluate.concurrency == (4,)


# --set.


def test_values_of_set_are_yaml_1_2():
    pairs = ("a=3", "b=0.5", "c=1e-3", "d=off", "e=[1, 2]", "f={name: kd}", "g=true", "h=", "i=x=y", "j= 2E2", "k=no")
    assert parse.parse_overrides(pairs) == {
        "a": 3, "b": 0.5, "c": 0.001, "d": "off", "e": [1, 2], "f": {"name": "kd"}, "g": True, "h": None, "i": "x=y",
        "j": 200.0, "k": "no",
    }  # fmt: skip


def test_off_and_an_exponent_reach_the_settings_as_they_look():
    settings = parse.load(overrides=parse.parse_overrides(("build_tensorrt.builder=off", "train.fit.lr=1e-3")))
    assert (settings.build_tensorrt.builder, settings.train.fit.lr) == ("off", 0.001)


@pytest.mark.parametrize("pair", ["train.fit.epochs", "=3", " =3"])
def test_set_without_a_key_or_a_value(pair):
    with pytest.raises(SettingsError) as caught:
        parse.parse_overrides((pair,))
    assert str(caught.value) == f"--set takes key=value, for example train.fit.epochs=3; got {pair!r}"


def test_set_with_a_value_that_is_not_yaml():
    with pytest.raises(SettingsError, match=r"--set a=\[1: the value is not YAML: "):
        parse.parse_overrides(("a=[1",))
