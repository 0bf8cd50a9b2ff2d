"""What tests of several folders share. Nothing heavy is imported before a test asks for it."""

import os

import pytest
import stack_environment
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the test processes share the cores already


_TOGETHER = {
    "tests/integration/": "stack",
    "tests/compression/quantization/": "float files",
    "tests/stages/test_build_tensorrt.py": "candidates",
    "tests/stages/test_export_onnx.py": "candidates",
    "tests/stages/test_quantize.py": "candidates",
}
"""Files that share what takes long to make -> what that is. One test process gets all of them, so that it is made once."""


def _shared(nodeid):
    return next((what for start, what in _TOGETHER.items() if nodeid.startswith(start)), None)


class _Sharing(LoadFileScheduling):
    """Give each file, or all files that share something, to one of the test processes."""

    def _split_scope(self, nodeid: str) -> str:
        return _shared(nodeid) or super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return _Sharing(config, log)


_WHOLE = {"here", "trained", "quantized", "candidates", "listed", "float_graph"}
"""Fixtures that train, or run whole stages with real exports and engines: what uses one is an integration test."""


@pytest.hookimpl(tryfirst=True)  # before markers are selected by
def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no process ends with it alone; inside a file the order stays."""
    for item in items:
        if not _WHOLE.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.integration)
    servers = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(
        key=lambda item: (
            "integration" not in item.path.parts,
            item.path not in servers,
            _shared(item.nodeid) is None,
        )
    )


@pytest.fixture(autouse=True)
def cache(request, tmp_path, monkeypatch):
    """No test finds what another has left, nor the stack that lives for all of tests/integration."""
    monkeypatch.setenv("FLYWEIGHT_CACHE", str(tmp_path / "cache"))
    if "integration" not in request.path.parts:
        for name, (before, stacks) in stack_environment.CHANGED.items():
            if os.environ.get(name) != stacks:  # a fixture of the test's own file has set it
                continue
            monkeypatch.delenv(name, raising=False) if before is None else monkeypatch.setenv(name, before)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A prepared data directory that is quick to learn: 1x8x8 images, label = the bright quadrant. It has no test split."""
    import numpy as np

    from pipeline.data import shards

    chance = np.random.default_rng(5)

    def images(count):
        labels = np.arange(count) % 4
        pixels = chance.integers(0, 90, (count, 1, 8, 8), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            top, left = divmod(int(label), 2)
            image[0, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 100
        return pixels, labels

    directory = tmp_path_factory.mktemp("tiny")
    splits = {"train": images(330), "validation": images(82)}
    shards.write(directory, name="tiny", labels=("nw", "ne", "sw", "se"), splits=splits)
    return directory


@pytest.fixture
def here(monkeypatch):
    """Train in the test's own process instead of under torchrun."""
    from pipeline.training import job as training

    monkeypatch.setattr("pipeline.training.fit.launch", lambda function, job, settings, scratch: training.run(job))
    monkeypatch.setattr("pipeline.training.fit.processes", lambda settings: 1)
