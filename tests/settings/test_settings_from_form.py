"""What the trigger form sends reaches the settings as the type that the schema wants."""

import pytest

from pipeline.settings import parse
from pipeline.settings.form import settings_arguments


@pytest.mark.parametrize(
    ("key", "sent", "value"),
    [
        ("distributed.nproc", "2", 2),
        ("distributed.nproc", "auto", "auto"),
        ("distill.baseline", "true", True),
        ("build_tensorrt.builder", "off", "off"),
        ("train.fit.lr", 0.05, 0.05),
        ("train.fit.epochs", 3, 3),
        ("evaluate.concurrency", [1, 4], (1, 4)),
        ("data.dataset", "digits", "digits"),
    ],
)
def test_a_value_of_the_form_becomes_a_setting(key, sent, value):
    _, recipe, *pairs = settings_arguments({"recipe": "demo", key: sent})
    found = parse.load(recipe, parse.parse_overrides(tuple(pairs[1::2])))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_component_of_the_form_keeps_its_arguments():
    pairs = settings_arguments({"distill.loss": {"name": "kd", "temperature": 2.0}})[2:]
    loss = parse.load(None, parse.parse_overrides(tuple(pairs[1::2]))).distill.loss
    assert loss.arguments["temperature"] == 2.0
