"""`flyweight check` refuses in seconds what would otherwise be refused after hours of training."""

import importlib.util

import pytest
from click.testing import CliRunner

from pipeline.__main__ import main
from pipeline.errors import FlyweightError, SettingsError


def check(*settings):
    arguments = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(main, ["check", "--recipe", "digits", *arguments])


def test_settings_that_hold_are_checked_in_one_line():
    done = check()
    assert (done.exit_code, done.output) == (0, "the settings hold: recipe digits, data set digits\n")


def test_a_model_of_ones_own_that_cannot_be_exported_is_refused_before_it_is_trained():
    message = r"distill\.model: training_toys:Eigen cannot be written as ONNX \(opset 20\): operator aten\._linalg_eigh"
    with pytest.raises(FlyweightError, match=message):
        raise check("distill.model.name=training_toys:Eigen").exception


def test_rounds_that_no_pruner_can_take_are_refused():
    with pytest.raises(SettingsError, match=r"prune\.rounds is 2, .* \(n_m\) can be cut into more than 1: set prune"):
        raise check("prune.pruner.name=n_m", "prune.rounds=2").exception


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        ("{name: channel, keep_macs: 0.01}", r"pruner\.keep_macs is 0\.01, but the least that resnet can keep .* is 0\.\d+: "),
        ("{name: channel, keep_macs: 0.5, round_to: 64}", "nothing was pruned: no layer of resnet can lose 64 channels"),
        ("{name: channel, keep_macs: 0.5, max_ratio: 1.0}", r"prune\.pruner: .*max_ratio is 1\.0: Input should be less than 1"),
        ("{name: channel, keep_macs: 0.5, layer_ratios: {'*': 1.0}}", r"prune\.pruner: .*layer_ratios.* less than 1"),
        ("{name: channel, keep_macs: 0.5, layer_ratios: {nosuch: 0.5}}", "layer_ratios names 'nosuch', which fits no layer"),
        ("{name: depth, drop: 9}", r"pruner\.drop is 9, but resnet has only 1 that can go \(blocks\.0\)"),
        ("{name: n_m, n: 2, m: 7}", r"is a multiple of pruner\.m \(7\); choose widths that are, or another m"),
        ("{name: low_rank, keep_macs: 1.5}", r"prune\.pruner: .*keep_macs is 1\.5: Input should be less than 1"),
    ],
)  # fmt: skip
def test_what_no_student_could_give_is_refused_before_one_is_trained(pruner, message):
    with pytest.raises(FlyweightError, match=message):
        raise check(f"prune.pruner={pruner}").exception


def test_a_package_that_is_missing_is_said_before_anything_runs(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: find(name, *rest) if name != "executorch" else None
    )
    with pytest.raises(SettingsError, match=r"pip install flyweight\[mobile\]"):
        raise check("export_onnx.mobile=executorch").exception


@pytest.mark.parametrize(
    ("quantizer", "targets", "message"),
    [
        (
            "dynamic",
            "[cpu, tensorrt]",
            r"quantize\.targets is \[cpu, tensorrt\], but the quantizer 'dynamic' writes cpu only: set quantize\.targets to "
            r"\[cpu\] and take int8_tensorrt out of build_tensorrt\.candidates, or quantize\.quantizer\.name to static",
        ),
        ("bf16", "[cpu, tensorrt]", r"'bf16' writes tensorrt only: set quantize\.targets to \[tensorrt\], or "),
    ],
)
def test_a_quantizer_that_cannot_write_a_target_is_refused(quantizer, targets, message):
    with pytest.raises(SettingsError, match=message):
        raise check(f"quantize.quantizer.name={quantizer}", f"quantize.targets={targets}").exception


@pytest.mark.parametrize(
    ("quantizer", "targets"), [("dynamic", "[cpu]"), ("bf16", "[tensorrt]"), ("fp16", "[cpu]"), ("mixed", "[cpu]")]
)
def test_a_quantizer_that_writes_all_targets_passes(quantizer, targets):
    candidates = "build_tensorrt.candidates=[pruned]"
    assert check(f"quantize.quantizer.name={quantizer}", f"quantize.targets={targets}", candidates).exit_code == 0


def test_four_bits_for_a_network_of_convolutions_are_refused_before_it_is_trained():
    with pytest.raises(
        FlyweightError, match=r"matrix products \(MatMul, Gemm\), and they hold [0-9]% of this network's"
    ):
        raise check("quantize.quantizer={name: int4}").exception
