"""Two small networks that know a little of the digits, as float ONNX files, and the digits themselves."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.export import onnx_graph
from pipeline.models.checkpoint import build, normalise
from pipeline.models.spec import Preprocessing, image_classifier

LABELS = tuple("0123456789")
PREPROCESSING = Preprocessing(mean=(0.305,), std=(0.376,))


@pytest.fixture(scope="session")
def digits():
    """(images (1797, 1, 8, 8) uint8, labels)"""
    from sklearn.datasets import load_digits  # takes seconds to import

    found = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8)[:, None], found.target


def trained(spec, network, digits, steps):
    images, labels = (torch.from_numpy(array) for array in digits)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        chosen = slice(step % 10 * 128, step % 10 * 128 + 128)
        loss = F.cross_entropy(network(normalise(spec, images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.fixture(scope="session")
def float_file(digits, tmp_path_factory):
    """Convolutions."""
    spec = image_classifier("resnet", {"width": 8, "blocks": [1, 1]}, (1, 8, 8), LABELS, PREPROCESSING)
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("float") / "model.onnx"
    onnx_graph.export(spec, trained(spec, build(spec), digits, 40), file)
    return file


@pytest.fixture(scope="session")
def matrix_file(digits, tmp_path_factory):
    """Matrix products alone."""
    spec = image_classifier("perceptron", {}, (1, 8, 8), LABELS, PREPROCESSING)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 72), nn.ReLU(), nn.Linear(72, 10))
    file = tmp_path_factory.mktemp("matrix") / "model.onnx"
    onnx_graph.export(spec, trained(spec, network, digits, 60), file)
    return file


@pytest.fixture(scope="session")
def source_for(float_file, matrix_file):
    """The float file that a quantizer of that name has something to do with."""
    return lambda quantizer: matrix_file if quantizer == "int4" else float_file
