"""ExecuTorch programs against PyTorch, in ExecuTorch's own Python runtime."""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ModelError, SettingsError
from pipeline.export import executorch
from pipeline.models.checkpoint import WithPreprocessing, build
from pipeline.models.spec import Preprocessing, image_classifier

_installed = executorch.importlib.util.find_spec("executorch") is not None


def needs_executorch(test):
    """Leave `test` to `make test-all`, which installs what the export needs."""
    reason = "needs the extra `mobile`: `make phone` installs it"
    return pytest.mark.extra(pytest.mark.skipif(not _installed, reason=reason)(test))


@pytest.fixture(scope="module")
def spec():
    preprocessing = Preprocessing(mean=(0.3, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    arguments = {"width": 4, "blocks": [1, 1]}
    return image_classifier("resnet", arguments, (3, 8, 8), ("cat", "dog", "emu"), preprocessing)


@pytest.fixture(scope="module")
def network(spec):
    torch.manual_seed(3)
    network = build(spec)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def written(spec, network, tmp_path_factory):
    """(the program's file, the operators that XNNPACK left behind)"""
    file = tmp_path_factory.mktemp("phone") / "model.pte"
    return file, executorch.export(spec, network, file, {"weights_sha256": "abc"})


def images(count):
    return np.random.default_rng(5).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


@needs_executorch
@pytest.mark.parametrize("batch", [1, 7, executorch.MAX_BATCH])
def test_it_answers_as_pytorch_does_at_any_batch(spec, network, written, batch):
    raw = images(batch)
    with torch.inference_mode():
        expected = WithPreprocessing(spec, network)(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(executorch.MobileRunner(written[0])({"image": raw})["logits"], expected, atol=1e-5)


@needs_executorch
def test_xnnpack_takes_all_of_the_network(written):
    assert [name for name in written[1] if "conv" in name or "mm" in name or "linear" in name] == []


@needs_executorch
def test_the_program_says_what_it_is(written):
    facts = executorch.MobileRunner(written[0]).metadata()
    assert json.loads(facts["labels"]) == ["cat", "dog", "emu"]
    assert json.loads(facts["preprocessing"]) == {"mean": [0.3, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    assert facts["weights_sha256"] == "abc"


@needs_executorch
def test_the_same_weights_give_the_same_bytes(spec, network, written, tmp_path):
    executorch.export(spec, network, tmp_path / "again.pte", {"weights_sha256": "abc"})
    files = (written[0], tmp_path / "again.pte")
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1


@needs_executorch
def test_a_larger_batch_is_refused(written):
    with pytest.raises(ModelError, match=r"refuses images of shape \(9, 3, 8, 8\) \(at most 8 a call\)"):
        executorch.MobileRunner(written[0])({"image": images(9)})


@needs_executorch
def test_a_file_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "model.pte").write_bytes(b"not a program")
    with pytest.raises(ModelError, match=r"ExecuTorch cannot load .*model\.pte"):
        executorch.MobileRunner(tmp_path / "model.pte")


@needs_executorch
def test_what_cannot_be_written_is_refused_and_nothing_is_left(spec, tmp_path):
    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x.mean(dim=(2, 3)))

    message = r"resnet cannot be written for ExecuTorch: .*bessel_j0.* or set export_onnx\.mobile to 'off'"
    with pytest.raises(ModelError, match=message):
        executorch.export(spec, Bessel(), tmp_path / "model.pte")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(executorch.importlib.util, "find_spec", lambda name: None)
    message = r"export_onnx\.mobile is 'executorch', but the Python package executorch is not installed: `pip install "
    with pytest.raises(SettingsError, match=message + r"flyweight\[mobile\]`, or set export_onnx\.mobile to 'off'"):
        executorch.check_installed()
