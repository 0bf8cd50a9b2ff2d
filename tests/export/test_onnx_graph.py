"""Exported graphs against PyTorch, then what every graph promises, then what cannot be exported."""

import copy
import hashlib
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.export import onnx_graph
from pipeline.models.checkpoint import WithPreprocessing, build
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.runners.onnx_runner import OnnxRunner

pytestmark = pytest.mark.integration  # each test exports a graph


@pytest.fixture(scope="module")
def spec():
    preprocessing = Preprocessing(mean=(0.3, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    arguments = {"width": 4, "blocks": [1]}
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
def file(spec, network, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    onnx_graph.export(spec, network, file, metadata={"weights_sha256": "abc"})
    return file


@pytest.fixture(scope="module")
def model(file):
    return onnx.load(file)


def images(count):
    return np.random.default_rng(5).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_onnx_answers_as_pytorch_does_at_any_batch(spec, network, file, batch):
    raw = images(batch)
    with torch.inference_mode():
        expected = WithPreprocessing(spec, network)(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(OnnxRunner(file)({"image": raw})["logits"], expected, atol=1e-5)


def test_the_graph_takes_raw_pixels_and_a_batch_of_any_size(model):
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == ["batch", 3, 8, 8]
    assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["batch", 3]


def test_batch_norm_is_folded_and_the_mean_over_the_image_is_a_pooling(model):
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Cast", "Mul", "Add", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}


def test_metadata_tells_labels_preprocessing_and_lineage(model):
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["labels"]) == ["cat", "dog", "emu"]
    assert json.loads(metadata["preprocessing"]) == {"mean": [0.3, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    assert (metadata["weights_sha256"], metadata["opset"]) == ("abc", "20")
    assert model.opset_import[0].version == 20


def test_nothing_of_the_machine_is_in_the_file(file):
    assert b".py" not in file.read_bytes()


def test_the_same_weights_give_the_same_bytes_in_any_memory_format(spec, network, file, tmp_path):
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    onnx_graph.export(spec, network, tmp_path / "again.onnx", metadata={"weights_sha256": "abc"})
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (file, tmp_path / "again.onnx")}
    assert len(hashes) == 1


@pytest.mark.integration
@pytest.mark.parametrize("opset", [pytest.param(18, marks=pytest.mark.extra), 23])
def test_the_opset_is_the_one_that_was_asked_for(spec, network, file, tmp_path, opset):
    onnx_graph.export(spec, network, tmp_path / "model.onnx", opset)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset
    raw = images(7)
    expected = OnnxRunner(file)({"image": raw})["logits"]
    np.testing.assert_allclose(OnnxRunner(tmp_path / "model.onnx")({"image": raw})["logits"], expected, atol=1e-5)


class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigh(x[:, :, :3, :3].mean(1)).eigenvalues


class Branch(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


class Twice(nn.Module):
    def forward(self, x):
        return torch.cat([x, x]).mean((2, 3))


REFUSED = [
    (
        Eigen,
        r"resnet cannot be written as ONNX \(opset 20\): operator aten\._linalg_eigh: No ONNX function .* or choose another",
    ),
    (
        Branch,
        r"test_onnx_graph\.py, line \d+, `return x\.mean.* if x\.sum\(\) > 0 .*`: "
        r"what is computed depends on the values in the image",
    ),
    (Twice, r"resnet answers \(batch, 3, 8, 8\) with \(2\*batch, 3\) instead of \(batch, 3\): one row per image"),
]


@pytest.mark.parametrize(("network", "message"), REFUSED, ids=[kind.__name__ for kind, _ in REFUSED])
def test_what_cannot_be_exported_is_named_and_nothing_is_written(spec, tmp_path, capfd, network, message):
    with pytest.raises(ModelError, match=message):
        onnx_graph.export(spec, network(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class Pairs(nn.Module):
    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()

    def forward(self, x):
        return (x + torch.ones(2, 3, 8, 8)).mean((2, 3))


def test_a_model_can_be_refused_before_it_is_trained(spec):
    other = spec.model_copy(update={"architecture": f"{__name__}:Pairs", "arguments": {}})
    message = r"test_onnx_graph:Pairs takes batches of 2 images only: .* Take the batch size from the input"
    with pytest.raises(ModelError, match=message):
        onnx_graph.check_exportable(other)
