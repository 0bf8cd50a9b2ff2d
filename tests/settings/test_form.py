"""The form offers every setting, and says what an empty field means."""

import pytest

from pipeline.errors import SettingsError
from pipeline.settings import parse
from pipeline.settings.form import DEFAULT_RECIPE, FORCE, RECIPE, params, settings_arguments
from pipeline.settings.schema import fields


@pytest.fixture(scope="module")
def form():
    return params()


def test_every_setting_of_a_run_is_offered_and_nothing_else(form):
    settings = {key for key, _ in fields()} - {"datasets"}
    assert set(form) == {RECIPE, FORCE, *settings}


def test_the_recipe_comes_first_and_the_budget_next(form):
    sections = list(dict.fromkeys(schema.get("section") for schema in form.values()))
    assert list(form)[:3] == [RECIPE, FORCE, "seed"]
    assert sections[0] is None
    assert sections[1] == "budget: What the user can afford: the gate."
    assert len(sections) == len({key.partition(".")[0] for key in form if "." in key}) + 1


def test_every_setting_can_be_left_to_the_recipe(form):
    for key, schema in form.items():
        if key not in {RECIPE, FORCE}:
            assert schema["default"] is None
            assert "null" in schema["type"]
            assert None in schema.get("enum", [None])


def test_the_default_recipe_is_among_the_recipes(form):
    assert form[RECIPE]["enum"] == parse.recipes()
    assert form[RECIPE]["default"] == DEFAULT_RECIPE in parse.recipes()


def test_help_says_what_an_empty_field_means(form):
    assert form["train.fit.epochs"]["description_md"] == (
        "Passes over the training images.\n\nLeft empty: 4 (demo: 2, digits: 12, full: 40)."
    )
    assert form["budget.p99_ms"]["description_md"].endswith("Left empty: null.")
    assert form["data.dataset"]["description_md"].endswith('Left empty: "fashion_mnist" (digits: "digits").')


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.fit.epochs", {"type": ["integer", "null"], "minimum": 1}),
        ("train.fit.lr", {"type": ["number", "null"], "exclusiveMinimum": 0.0}),
        ("train.fit.optimizer", {"type": ["string", "null"], "enum": [None, "sgd", "adamw"]}),
        ("distributed.strategy", {"type": ["string", "null"], "enum": [None, "ddp"]}),
        ("distributed.nproc", {"type": ["string", "integer", "null"], "examples": ["auto"]}),
        ("distill.baseline", {"type": ["string", "boolean", "null"], "examples": ["true", "false"]}),
        ("budget.p99_ms", {"type": ["number", "null"], "exclusiveMinimum": 0.0}),
        ("train.model", {"type": ["object", "null"]}),
        ("quantize.targets", {"type": ["array", "null"], "examples": ["cpu", "tensorrt"]}),
        ("evaluate.concurrency", {"type": ["array", "null"], "items": {"minimum": 1, "type": "integer"}}),
    ],
)
def test_types_and_bounds_are_the_schemas(form, key, expected):
    assert {name: form[key][name] for name in expected} == expected


def test_only_what_was_changed_is_sent():
    conf = dict.fromkeys(params()) | {RECIPE: "digits", FORCE: True, "train.fit.epochs": 3}
    assert settings_arguments(conf) == ["--recipe", "digits", "--set", "train.fit.epochs=3"]


@pytest.mark.parametrize(
    ("conf", "text"),
    [
        ({"train.fit.epoch": 3}, "train.fit has no 'epoch'.*did you mean 'epochs'"),
        ({"trian": {"fit": {"epochs": 3}}}, "the settings have no 'trian'.*did you mean 'train'"),
        ({"datasets": {}}, "'datasets' is pinned by dvc.lock"),
        ({"recipe": "dmo"}, "there is no recipe 'dmo'.*did you mean 'demo'"),
    ],
)
def test_what_airflow_lets_through_the_settings_refuse(conf, text):
    _, recipe, *pairs = settings_arguments(conf)
    with pytest.raises(SettingsError, match=text):
        parse.load(recipe, parse.parse_overrides(tuple(pairs[1::2])))
