"""A Triton server of the tests' own."""

import socket
import subprocess
import time

import pytest


def free_ports(count):
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def triton(tmp_path, monkeypatch):
    """A real server with an empty repository, on free ports; gone when the test ends."""
    from pipeline.serving.triton import server
    from pipeline.serving.triton.client import Client

    repository = tmp_path / "repository"
    repository.mkdir()
    grpc, http, metrics = free_ports(3)
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(repository))
    monkeypatch.setenv("FLYWEIGHT_TRITON_GRPC", f"127.0.0.1:{grpc}")
    server.install()
    line, environment = server.command(repository, grpc_port=grpc, http_port=http, metrics_port=metrics)
    log = (tmp_path / "triton.log").open("wb")
    process = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
    try:
        with Client() as client:
            deadline = time.monotonic() + 60
            while not client.live():
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "triton.log").read_text()
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory):
    """scikit-learn's digits as a prepared data directory: 1,300 training, 200 validation, 297 test images."""
    import numpy as np
    from sklearn.datasets import load_digits

    from pipeline.data import shards

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]
    parts = {"train": slice(0, 1300), "validation": slice(1300, 1500), "test": slice(1500, 1797)}
    splits = {name: (images[part], found.target[part].astype(np.int64)) for name, part in parts.items()}
    directory = tmp_path_factory.mktemp("digits")
    shards.write(directory, name="digits", labels=tuple("0123456789"), splits=splits)
    return directory


@pytest.fixture(scope="session")
def digits_checkpoints(digits_data, tmp_path_factory):
    """Networks that know a little of the digits: {"teacher", "student", "pruned"} -> checkpoint directory."""
    import torch
    from torch.nn import functional as F

    from pipeline.data.manifest import load_manifest
    from pipeline.data.split import open_split
    from pipeline.models import checkpoint
    from pipeline.models.spec import Preprocessing, PruningStep, image_classifier

    manifest, train = load_manifest(digits_data), open_split(digits_data, "train")
    images, labels = torch.tensor(train.images()), torch.from_numpy(train.labels)
    made = {}
    for seed, (name, width) in enumerate({"teacher": 12, "student": 8, "pruned": 8}.items()):
        torch.manual_seed(seed)
        spec = image_classifier(
            "resnet",
            {"width": width, "blocks": [1, 1]},
            manifest.image_shape,
            manifest.labels,
            Preprocessing(mean=manifest.mean, std=manifest.std),
        )
        if name == "pruned":
            widths = {"blocks.0.conv1": (8, 4), "blocks.0.bn1": (4, 4), "blocks.0.conv2": (4, 8)}
            spec = spec.model_copy(update={"pruning": (PruningStep(method="by hand", widths=widths),)})
        network = checkpoint.build(spec)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for step in range(40):
            chosen = slice(step % 10 * 128, step % 10 * 128 + 128)
            loss = F.cross_entropy(network(checkpoint.normalise(spec, images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        made[name] = tmp_path_factory.mktemp(name)
        checkpoint.save(made[name], spec, network)
    return made


@pytest.fixture(scope="session")
def quantized(digits_data, digits_checkpoints, tmp_path_factory):
    """(what `quantize` wrote, the metrics that it returned)"""
    from pipeline.settings.compression import Quantize
    from pipeline.settings.training import Distributed
    from pipeline.stages.quantize import quantize

    out = tmp_path_factory.mktemp("quantized")
    places = {"data": digits_data, "teacher": digits_checkpoints["teacher"], "pruned": digits_checkpoints["pruned"]}
    config = Quantize(calibration_images=200)
    scratch = tmp_path_factory.mktemp("quantized-scratch")
    return out, quantize(config, **places, distributed=Distributed(), seed=3, out=out, scratch=scratch)


@pytest.fixture(scope="session")
def candidates(digits_data, digits_checkpoints, quantized, tmp_path_factory):
    """(what `export_onnx` wrote, the metrics that it returned)"""
    from pipeline.settings.export import ExportOnnx
    from pipeline.stages.export_onnx import export_onnx

    out = tmp_path_factory.mktemp("candidates")
    config = ExportOnnx(parity_images=200)
    return out, export_onnx(config, data=digits_data, quantized=quantized[0], **digits_checkpoints, out=out)
