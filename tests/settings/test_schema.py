"""Settings: what contradicts itself is refused, and nothing can change afterwards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from settings_toys import refusal

from pipeline.settings import parse, schema

ROOT = Path(__file__).resolve().parents[2]


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
    assert parse.load(overrides={"distill.loss.name": "mine.losses:Focal"}).distill.loss.name == "mine.losses:Focal"


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
    assert parse.load(overrides={"budget.at_concurrency": 32}).budget.p99_ms is None, (
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
    allowed = parse.load(overrides={"quantize.targets": ["cpu"], "build_tensorrt.candidates": ["pruned"]})
    assert allowed.quantize.targets == ("cpu",)


def test_every_problem_is_named_at_once():
    text = refusal({"seed": -1, "train.fit.epoch": 3, "budget.accuracy_drop": 2.0})
    assert text.startswith("the settings do not hold (docs/settings.md lists them all):\n  - ")
    assert text.count("\n  - ") == 3
    text = refusal({"data.dataset": "cifar", "distill.loss.name": "kdx", "quantize.targets": ["cpu"]})
    assert text.count("\n  - ") == 3


# Frozen, whole, light.


def test_settings_cannot_be_changed():
    settings = parse.load()
    for section, name in ((settings, "seed"), (settings.train.fit, "epochs"), (settings.distill.loss, "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)


def test_settings_survive_a_round_trip_through_json():
    settings = parse.load("full", {"distributed.nproc": 3, "budget.p99_ms": 4.0, "budget.at_concurrency": 16})
    assert parse.parse(json.loads(settings.model_dump_json())) == settings


def test_every_setting_has_a_sentence_of_help():
    for key, info in schema.fields():
        assert info.description and info.description.rstrip()[-1] in ".;", f"{key} has no sentence of help"


def test_nothing_heavy_is_imported():
    """Airflow imports it whenever it parses the DAG."""
    code = (
        "import sys; import pipeline.settings.parse as c; c.load('demo'); "
        "heavy = {'torch', 'mlflow', 'great_expectations', 'onnxruntime', 'pandas', 'sklearn', 'airflow', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
