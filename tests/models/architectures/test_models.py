"""Every file of `models/` answers, learns, comes back from a checkpoint and can be pruned."""

import numpy as np
import pytest
import torch

from pipeline import components
from pipeline.compression.pruning.pruners.channel import Channel
from pipeline.export import onnx_graph
from pipeline.models import checkpoint
from pipeline.models.size import macs
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.runners.onnx_runner import OnnxRunner


@pytest.fixture(params=components.names("models"))
def spec(request):
    preprocessing = Preprocessing(mean=(0.1, 0.2), std=(1.0, 2.0))
    return image_classifier(request.param, {}, (2, 16, 16), tuple("abcde"), preprocessing)


@pytest.fixture
def network(spec):
    torch.manual_seed(0)
    return checkpoint.build(spec)


def test_it_answers_with_a_logit_a_label(network):
    assert network(torch.randn(3, 2, 16, 16)).shape == (3, 5)


def test_an_image_is_answered_alike_alone_and_in_a_batch(network):
    images = torch.randn(4, 2, 16, 16)
    network.eval()
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)


def test_every_weight_learns(network):
    network(torch.randn(4, 2, 16, 16)).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_it_comes_back_from_a_checkpoint(spec, network, tmp_path):
    checkpoint.save(tmp_path, spec, network.eval())
    images = torch.randn(2, 2, 16, 16)
    assert torch.equal(checkpoint.load(tmp_path)[1](images), network(images))


def test_it_can_be_pruned_and_rebuilt(spec, network):
    before = macs(network, (2, 16, 16))
    step = Channel(keep_macs=0.5)(spec, network, iter(()))
    rebuilt = checkpoint.build(spec.model_copy(update={"pruning": (step,)}))
    rebuilt.load_state_dict(network.state_dict())
    images = torch.randn(2, 2, 16, 16)
    assert macs(network, (2, 16, 16)) <= 0.5 * before
    assert torch.equal(rebuilt.eval()(images), network.eval()(images))


def test_it_becomes_an_onnx_graph_that_answers_alike(spec, network, tmp_path):
    onnx_graph.check_exportable(spec)
    onnx_graph.export(spec, network.eval(), tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16), np.uint8)
    found = OnnxRunner(tmp_path / "model.onnx")({"image": images})["logits"]
    expected = checkpoint.WithPreprocessing(spec, network).eval()(torch.tensor(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
