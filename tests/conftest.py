"""What tests of several folders share. Nothing heavy is imported before a test asks for it."""

import collections
import functools
import gc
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the test processes share the cores already
for name in [name for name in os.environ if re.fullmatch("FLYWEIGHT_[A-Z_]+_PORT", name)]:
    del os.environ[name]  # who has moved the demo to other ports passes the same tests


DURATIONS = Path(__file__).with_name("durations.json")
"""File -> seconds that its tests took in one process, by which the longest start first. What is not in it counts as long
if it is an integration test; what no longer exists does no harm. `make test-all ARGS=--keep-durations` writes it again."""

_TOGETHER = {
    "tests/integration/": "stack",
    "tests/dags/": "airflow",
    "tests/compression/quantization/": "exports",
    "tests/export/test_onnx_graph.py": "exports",
    "tests/models/architectures/test_models.py": "exports",
    "tests/tracking/test_comparison.py": "mlflow",
    "tests/tracking/test_registry.py": "mlflow",
    "tests/tracking/test_runs.py": "mlflow",
    "tests/tracking/test_stage.py": "mlflow",
    "tests/tracking/test_system_metrics.py": "mlflow",
    "tests/runners/test_trial.py": "exports",
    "tests/stages/test_build_tensorrt.py": "exports",
    "tests/stages/test_export_onnx.py": "exports",
    "tests/stages/test_quantize.py": "exports",
    "tests/serving/load/test_load_triton.py": "triton",
    "tests/serving/load/test_serving_benchmark.py": "triton",
    "tests/serving/promotion/test_canary_triton.py": "triton",
    "tests/serving/promotion/test_promote_triton.py": "triton",
    "tests/serving/promotion/test_swap.py": "triton",
    "tests/serving/triton/test_ensemble.py": "triton",
    "tests/serving/triton/test_hostile.py": "triton",
    "tests/serving/triton/test_model_server.py": "triton",
    "tests/serving/triton/test_nvidia_simple.py": "triton",
    "tests/serving/triton/test_triton.py": "triton",
}
"""Files that share what takes long to make -> what that is. One test process gets all of them, so that it is made once."""


def _unit(nodeid):
    """What one test process gets as a whole: a file, or all files that share something."""
    file = nodeid.partition("::")[0]
    return next((what for start, what in _TOGETHER.items() if file.startswith(start)), file)


class _Sharing(LoadFileScheduling):
    """Give each unit to one of the test processes."""

    def _split_scope(self, nodeid: str) -> str:
        return _unit(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return _Sharing(config, log)


_WHOLE = {"here", "trained", "quantized", "candidates", "listed", "float_graph"}
"""Fixtures that train, or run whole stages with real exports and engines: what uses one is an integration test."""


@pytest.hookimpl(tryfirst=True)  # before markers are selected by
def pytest_collection_modifyitems(config, items):
    """Begin with what takes longest, so that no process ends with it alone; inside a file the order stays.

    A bare machine or a benchmark takes minutes: only a selection that names its marker gets it.
    """
    unnamed = [tier for tier in ("benchmark", "machine") if tier not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(tier) for tier in unnamed)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if not _WHOLE.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.integration)
        if _unit(item.nodeid) == "exports":
            item.fixturenames.append("operators_read_once")
        if "triton_server" in item.fixturenames and _unit(item.nodeid) != "triton":
            raise pytest.UsageError(f"{item.nodeid} uses the real Triton: add its file to _TOGETHER in {__file__}")
    known = json.loads(DURATIONS.read_text(encoding="utf-8"))
    seconds = collections.Counter()
    for file, long in {item.nodeid.partition("::")[0]: _is_long(item) for item in items}.items():
        seconds[_unit(file)] += known.get(file, 30 if long else 1)
    items.sort(key=lambda item: (-seconds[_unit(item.nodeid)], _unit(item.nodeid)))


def _is_long(item):
    return item.get_closest_marker("integration") is not None


@pytest.fixture(scope="session")
def operators_read_once():
    """PyTorch's exporter reads the source of the same 500 operators for every graph, which takes half a second each time."""
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        apis = _registration.onnxscript_apis
        patch.setattr(apis, "get_torchlib_ops", functools.cache(apis.get_torchlib_ops))
        yield


@pytest.fixture(scope="session")
def stats():
    """scipy.stats, which takes a second to import: only the processes that run tests with it should spend that."""
    from scipy import stats

    return stats


def pytest_addoption(parser):
    parser.addoption("--keep-durations", action="store_true", help=f"write how long each file took to {DURATIONS.name}")


def pytest_configure(config):
    if getattr(config, "workerinput", {}).get("workerid", "gw0") != "gw0":
        os.nice(5)  # the first process gets what takes longest, which nothing should delay
    if config.getoption("keep_durations") and not hasattr(config, "workerinput"):  # not in xdist's test processes
        config.pluginmanager.register(_Durations())
    if config.getoption("numprocesses", 0) and not hasattr(config, "workerinput"):
        _compile()


def _compile():
    """In an environment that is new, let two processes compile what all test processes import: each would compile it all."""
    torch = importlib.util.find_spec("torch")
    if sys.dont_write_bytecode or Path(torch.cached).exists():
        return
    halves = "torch.export", "matplotlib.figure, onnx, onnxruntime, playwright.sync_api, tritonclient.grpc"
    started = [subprocess.Popen([sys.executable, "-c", f"import {half}"]) for half in halves]
    for one in started:
        one.wait()


def pytest_collection_finish(session):
    gc.freeze()  # what the test files import stays; it need not be looked through again and again


class _Durations:
    """Adds up how long the tests of each file took, and keeps it for the next runs."""

    def __init__(self):
        self.seconds = collections.Counter()

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self):
        known = json.loads(DURATIONS.read_text(encoding="utf-8"))
        root = DURATIONS.parents[1]
        there = {file: value for file, value in known.items() if (root / file).exists()}
        there |= {file: round(value, 1) for file, value in self.seconds.items()}
        DURATIONS.write_text(json.dumps(dict(sorted(there.items())), indent=1) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test finds what another has left."""
    monkeypatch.setenv("FLYWEIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session", autouse=True)
def data_of_the_user():
    """No test writes into data/: what is there is the user's."""
    before = _files_below(DURATIONS.parents[1] / "data")
    yield
    after = _files_below(DURATIONS.parents[1] / "data")
    assert sorted(dict(before ^ after)) == [], "tests changed files below data/"


def _files_below(directory):
    """(path, (size, time of the last change)) of every file."""
    found = ((str(path), path.stat()) for path in directory.rglob("*") if path.is_file())
    return {(path, (stat.st_size, stat.st_mtime_ns)) for path, stat in found}


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
def here():
    """Train in the test's own process instead of under torchrun."""
    from training_toys import in_one_process

    with in_one_process():
        yield
