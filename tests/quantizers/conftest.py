"""A small network that knows a little of the digits, as a float ONNX file, and the digits themselves."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from pipeline import onnx_graph
from pipeline.checkpoint import Preprocessing, build, image_classifier, normalise


@pytest.fixture(scope="session")
def digits():
    """(images (1797, 1, 8, 8) uint8, labels)"""
    found = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8)[:, None], found.target


@pytest.fixture(scope="session")
def float_file(digits, tmp_path_factory):
    images, labels = (torch.from_numpy(array) for array in digits)
    preprocessing = Preprocessing(mean=(0.305,), std=(0.376,))
    spec = image_classifier("resnet", {"width": 8, "blocks": [1, 1]}, (1, 8, 8), tuple("0123456789"), preprocessing)
    torch.manual_seed(1)
    network = build(spec)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(40):
        chosen = slice(step % 10 * 128, step % 10 * 128 + 128)
        loss = F.cross_entropy(network(normalise(spec, images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    file = tmp_path_factory.mktemp("float") / "model.onnx"
    onnx_graph.export(spec, network, file)
    return file
