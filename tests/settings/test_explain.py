"""A mistake is named with its setting, its value, what is allowed and the near miss."""

from pathlib import Path

import pytest
from settings_toys import refusal

ROOT = Path(__file__).resolve().parents[2]


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
