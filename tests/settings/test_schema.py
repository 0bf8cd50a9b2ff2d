"""Settings: what is refused and in which words, what overlays what, and that nothing can change afterwards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import SettingsError
from pipeline.settings import schema

ROOT = Path(__file__).resolve().parents[2]


def refusal(overrides=None, recipe=None):
    with pytest.raises(SettingsError) as caught:
        schema.load(recipe, overrides)
    return str(caught.value)


# A misspelt key, at every depth, with the near miss.


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("trian.fit.epochs", "trian: the settings have no 'trian'; allowed: seed, data, datasets, "),
        ("train.fit.epoch", "train.fit.epoch: train.fit has no 'epoch'; allowed: epochs, batch_size, "),
        ("train.fits.epochs", "train.fits: train has no 'fits'; allowed: model, fit; did you mean 'fit'?"),
        ("budget.p99", "budget.p99: budget has no 'p99'; allowed: "),
        ("", ": the settings have no ''; allowed: "),
    ],
)
def test_an_unknown_key_is_named_with_what_is_allowed(key, sentence):
    assert f"\n  - {sentence}" in refusal({key: 3})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("trian.fit.epochs", "train"),
        ("train.fit.epoch", "epochs"),
        ("train.fit.weigth_decay", "weight_decay"),
        ("budget.p99", "p99_ms"),
        ("epochs", "train.fit.epochs"),
    ],
)
def test_an_unknown_key_is_refused_with_the_near_miss(key, near):
    assert refusal({key: 3}).endswith(f"; did you mean {near!r}?")


def test_nonsense_gets_no_suggestion():
    assert "did you mean" not in refusal({"qqqqqq": 3})


# Another type. Nothing is converted: what looks like a mistake is one.


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train.fit.epochs", "three", "train.fit.epochs is 'three': Input should be a valid integer"),
        ("train.fit.epochs", "3", "train.fit.epochs is '3': Input should be a valid integer"),
        ("train.fit.epochs", True, "train.fit.epochs is True: Input should be a valid integer"),
        ("train.fit.epochs", 2.5, "train.fit.epochs is 2.5: Input should be a valid integer"),
        ("train.fit.epochs", None, "train.fit.epochs is None: Input should be a valid integer"),
        ("train.fit.epochs", [3], "train.fit.epochs is [3]: Input should be a valid integer"),
        ("train.fit.lr", "fast", "train.fit.lr is 'fast': Input should be a valid number"),
        ("distill.baseline", 1, "distill.baseline is 1: Input should be a valid boolean"),
        ("distributed.nproc", "all", "distributed.nproc is 'all': Input should be 'auto', or: Input should be a valid"),
        ("train.fit", 3, "train.fit is 3: it holds settings of its own, such as train.fit.epochs"),
        ("train", None, "train is None: it holds settings of its own, such as train.model"),
        ("distill.loss", "kd", "distill.loss is 'kd': it holds settings of its own, such as distill.loss.name"),
        ("evaluate.concurrency", 16, "evaluate.concurrency is 16: Input should be a valid array"),
    ],
)
def test_another_type_is_refused_with_its_value(key, value, sentence):
    assert f"\n  - {sentence}" in refusal({key: value})


# A value out of range, or not one of those allowed.


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train.fit.epochs", 0, "train.fit.epochs is 0: Input should be greater than or equal to 1"),
        ("seed", -1, "seed is -1: Input should be greater than or equal to 0"),
        ("train.fit.lr", 0.0, "train.fit.lr is 0.0: Input should be greater than 0"),
        ("train.fit.lr", float("nan"), "train.fit.lr is nan: Input should be a finite number"),
        ("train.fit.lr", float("inf"), "train.fit.lr is inf: Input should be a finite number"),
        ("budget.accuracy_drop", 1.5, "budget.accuracy_drop is 1.5: Input should be less than or equal to 1"),
        ("export_onnx.opset", 17, "export_onnx.opset is 17: Input should be greater than or equal to 18"),
        ("evaluate.concurrency", [1, 0], "evaluate.concurrency is 0: Input should be greater than or equal to 1"),
        ("quantize.targets", [], "quantize.targets is []: Tuple should have at least 1 item"),
        ("serving.model", "My Model", "serving.model is 'My Model': String should match pattern"),
        (
            "train.fit.optimizer",
            "adam",
            "train.fit.optimizer is 'adam': Input should be 'sgd' or 'adamw'; did you mean",
        ),
        (
            "build_tensorrt.builder",
            "tensort",
            "build_tensorrt.builder is 'tensort': Input should be 'auto', 'tensorrt'",
        ),
        ("quantize.targets", ["gpu"], "quantize.targets is 'gpu': Input should be 'cpu' or 'tensorrt'; did you mean"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(key, value, sentence):
    assert f"\n  - {sentence}" in refusal({key: value})


# Components.


@pytest.mark.parametrize(
    ("key", "kind", "near"), [("distill.loss", "losses", "kd"), ("train.model", "models", "resnet")]
)
def test_an_unknown_component_is_refused_with_the_near_miss(key, kind, near):
    wrong = f"{near}x"
    sentence = f"\n  - {key}: there is no {wrong!r} in {kind}; there are: "
    assert sentence in refusal({f"{key}.name": wrong})
    assert f"did you mean {near!r}? (your own is written as 'package.module:Name')" in refusal({f"{key}.name": wrong})


def test_a_component_of_ones_own_is_taken_by_its_path():
    assert schema.load(overrides={"distill.loss.name": "mine.losses:Focal"}).distill.loss.name == "mine.losses:Focal"


# Settings that contradict each other.


def test_a_data_set_that_params_yaml_does_not_describe():
    assert (
        "\n  - data.dataset is 'digit', which is not under 'datasets': fashion_mnist, digits; did you mean 'digits'?"
        in refusal({"data.dataset": "digit"})
    )


def test_a_p99_at_a_concurrency_that_is_not_measured():
    assert (
        "\n  - budget.at_concurrency is 32, which evaluate.concurrency [1, 16, 64] does not measure: "
        "add it there or choose one of them" in refusal({"budget.p99_ms": 5.0, "budget.at_concurrency": 32})
    )
    assert schema.load(overrides={"budget.at_concurrency": 32}).budget.p99_ms is None, (
        "without a limit it does not matter"
    )


@pytest.mark.parametrize(("name", "near"), [("studnt", "; did you mean 'student'?"), ("int8", "")])
def test_an_engine_of_a_candidate_that_is_not_for_tensorrt(name, near):
    assert (
        f"\n  - build_tensorrt.candidates names {name!r}, which is not exported for TensorRT; these are: teacher, student, "
        f"pruned, int8_tensorrt{near}" in refusal({"build_tensorrt.candidates": [name]})
    )


def test_an_engine_of_a_graph_that_is_not_written():
    assert (
        "\n  - build_tensorrt.candidates names int8_tensorrt, but quantize.targets has no 'tensorrt': "
        "add it there or drop the candidate" in refusal({"quantize.targets": ["cpu"]})
    )
    allowed = schema.load(overrides={"quantize.targets": ["cpu"], "build_tensorrt.candidates": ["pruned"]})
    assert allowed.quantize.targets == ("cpu",)


def test_every_problem_is_named_at_once():
    text = refusal({"seed": -1, "train.fit.epoch": 3, "budget.accuracy_drop": 2.0})
    assert text.startswith("the settings do not hold (docs/settings.md lists them all):\n  - ")
    assert text.count("\n  - ") == 3
    text = refusal({"data.dataset": "cifar", "distill.loss.name": "kdx", "quantize.targets": ["cpu"]})
    assert text.count("\n  - ") == 3


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
    assert schema.load().train.fit.batch_size == schema.Fit().batch_size
    assert schema.load("digits").train.fit.batch_size == 64
    assert schema.load("digits", {"train.fit.batch_size": 32}).train.fit.batch_size == 32
    assert (
        schema.load("digits", {"train.fit.batch_size": 32}).train.fit.epochs == schema.load("digits").train.fit.epochs
    )


def test_one_argument_of_a_component_can_be_changed_alone():
    for recipe in (None, "demo"):
        loss = schema.load(recipe, {"distill.loss.temperature": 2.0}).distill.loss
        assert (loss.name, loss.arguments) == ("kd", {"temperature": 2.0, "alpha": 0.9})


def test_a_new_name_drops_the_arguments_of_the_old_one():
    loss = schema.load("demo", {"distill.loss.name": "mine:Loss"}).distill.loss
    assert (loss.name, loss.arguments) == ("mine:Loss", {})


def test_arguments_of_a_new_component_may_stand_before_its_name():
    for order in (("beta", "name"), ("name", "beta")):
        values = {"beta": 8, "name": "mine:Loss"}
        loss = schema.load("demo", {f"distill.loss.{key}": values[key] for key in order}).distill.loss
        assert loss.arguments == {"beta": 8}


def test_a_list_is_replaced_not_merged():
    assert schema.load("demo", {"train.model.blocks": [2]}).train.model.arguments["blocks"] == [2]
    assert schema.load("demo", {"evaluate.concurrency": [4]}).evaluate.concurrency == (4,)


# --set.


def test_values_of_set_are_yaml_1_2():
    pairs = ("a=3", "b=0.5", "c=1e-3", "d=off", "e=[1, 2]", "f={name: kd}", "g=true", "h=", "i=x=y", "j= 2E2", "k=no")
    assert schema.parse_overrides(pairs) == {
        "a": 3, "b": 0.5, "c": 0.001, "d": "off", "e": [1, 2], "f": {"name": "kd"}, "g": True, "h": None, "i": "x=y",
        "j": 200.0, "k": "no",
    }  # fmt: skip


def test_off_and_an_exponent_reach_the_settings_as_they_look():
    settings = schema.load(overrides=schema.parse_overrides(("build_tensorrt.builder=off", "train.fit.lr=1e-3")))
    assert (settings.build_tensorrt.builder, settings.train.fit.lr) == ("off", 0.001)


@pytest.mark.parametrize("pair", ["train.fit.epochs", "=3", " =3"])
def test_set_without_a_key_or_a_value(pair):
    with pytest.raises(SettingsError) as caught:
        schema.parse_overrides((pair,))
    assert str(caught.value) == f"--set takes key=value, for example train.fit.epochs=3; got {pair!r}"


def test_set_with_a_value_that_is_not_yaml():
    with pytest.raises(SettingsError, match=r"--set a=\[1: the value is not YAML: "):
        schema.parse_overrides(("a=[1",))


# Frozen, whole, light.


def test_settings_cannot_be_changed():
    settings = schema.load()
    for section, name in ((settings, "seed"), (settings.train.fit, "epochs"), (settings.distill.loss, "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)


def test_settings_survive_a_round_trip_through_json():
    settings = schema.load("full", {"distributed.nproc": 3, "budget.p99_ms": 4.0, "budget.at_concurrency": 16})
    assert schema.parse(json.loads(settings.model_dump_json())) == settings


def test_every_setting_has_a_sentence_of_help():
    for key, info in schema.fields():
        assert info.description and info.description.rstrip()[-1] in ".;", f"{key} has no sentence of help"


def test_nothing_heavy_is_imported():
    """Airflow imports it whenever it parses the DAG."""
    code = (
        "import sys; import pipeline.settings.schema as c; c.load('demo'); "
        "heavy = {'torch', 'mlflow', 'great_expectations', 'onnxruntime', 'pandas', 'sklearn', 'airflow', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
