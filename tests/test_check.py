"""`flyweight check` refuses in seconds what would otherwise be refused after hours of training."""

import importlib.util

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from pipeline.__main__ import main
from pipeline.errors import FlyweightError, SettingsError


class Eigen(nn.Module):
    """Something that ONNX has no operator for."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()

    def forward(self, x):
        return torch.linalg.eigh(x[:, 0]).eigenvalues


def check(*settings):
    arguments = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(main, ["check", "--recipe", "digits", *arguments])


def test_settings_that_hold_are_checked_in_one_line():
    done = check()
    assert (done.exit_code, done.output) == (0, "the settings hold: recipe digits, data set digits\n")


def test_a_model_of_ones_own_that_cannot_be_exported_is_refused_before_it_is_trained():
    message = r"distill\.model: test_check:Eigen cannot be written as ONNX \(opset 20\): operator aten\._linalg_eigh"
    with pytest.raises(FlyweightError, match=message):
        raise check("distill.model.name=test_check:Eigen").exception


def test_a_package_that_is_missing_is_said_before_anything_runs(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: find(name, *rest) if name != "executorch" else None
    )
    with pytest.raises(SettingsError, match=r"pip install flyweight\[mobile\]"):
        raise check("export_onnx.mobile=executorch").exception
