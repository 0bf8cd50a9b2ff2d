"""Load and tuning on the real local Triton: figures that add up, and a search that leaves nothing behind."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from onnx_toys import add_sub
from serving_toys import artifact, images

from pipeline.cli.main import main
from pipeline.errors import FlyweightError
from pipeline.serving.load import measure, requests, tuning, tuning_run
from pipeline.serving.load.result import Closed, Open
from pipeline.serving.triton.artifact import from_file
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.temporary import temporary_models
from pipeline.settings.gate import Budget
from pipeline.settings.serving import Promote, Serving
from pipeline.tracking import other_run

pytestmark = pytest.mark.integration


@pytest.fixture
def served(triton, tmp_path, monkeypatch):
    """The name of a model that is served while the test runs."""
    monkeypatch.setenv("FLYWEIGHT_TRITON_METRICS_PORT", str(triton.ports["metrics_port"]))
    with temporary_models(Serving(model="loaded", instances=1), [artifact(tmp_path, 1.0)]) as names:
        yield names["int8"]


def test_a_closed_loop_agrees_with_tritons_own_counters(served):
    found = measure.run(served, "", {"image": images(4)}, Closed(8), seconds=1.2, warmup=0.3)
    assert found.failures == 0
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms <= found.p999_ms <= found.max_ms
    assert len(found.windows) == 3
    assert found.late_p99_ms is None
    server = found.server
    assert sum(size * count for size, count in server.batches.items()) == server.requests
    # the counters are read a moment after the windows end
    assert server.requests == pytest.approx(found.throughput * 1.2, rel=0.5)
    assert 1 <= server.mean_batch <= 8
    assert 0 < server.compute_ms < found.mean_ms
    assert 0 < server.cpu <= 1
    assert server.gpu is None


def test_an_open_loop_sends_at_its_rate(served):
    found = measure.run(served, "", {"image": images(4)}, Open(100.0, "constant"), seconds=1.5, warmup=0.3)
    assert found.requests == pytest.approx(150, abs=1)
    assert found.failures == 0
    assert 0 <= found.late_p99_ms <= found.max_ms


def test_a_model_with_two_inputs_takes_load_too(triton, tmp_path):
    simple = from_file(add_sub(tmp_path / "simple.onnx"))
    with temporary_models(Serving(model="loaded", instances=1), [simple]) as names:
        with Client() as client:
            inputs = requests.zeros(client.metadata(names["simple"]))
        found = measure.run(names["simple"], "", inputs, Closed(2), seconds=0.6, warmup=0.1)
    assert found.failures == 0 < found.requests


def test_the_command_measures_writes_and_draws(served, tmp_path):
    files = {"--json": tmp_path / "load.json", "--plot": tmp_path / "load.png"}
    options = [str(part) for pair in files.items() for part in pair]
    done = CliRunner().invoke(main, ["load", served, "--concurrency", "1,2,4", "--seconds", "0.3", *options])
    assert done.exit_code == 0, done.output
    assert "Knee (most answers/s for each ms of waiting)" in " ".join(done.output.split())
    written = json.loads(files["--json"].read_text())
    assert [one["load"] for one in written["loads"]] == [
        {"kind": "closed", "concurrency": count} for count in (1, 2, 4)
    ]
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")


def test_an_unknown_model_gets_its_near_miss(served):
    done = CliRunner().invoke(main, ["load", served[:-1], "--concurrency", "1"])
    assert isinstance(done.exception, FlyweightError)
    assert f"does not serve {served[:-1]!r}; it serves: " in str(done.exception)
    assert str(done.exception).endswith(f"; did you mean {served!r}?")


def test_images_that_the_model_does_not_take_are_refused(served, tiny_data, monkeypatch):
    monkeypatch.setattr("pipeline.cli.load._images", lambda count, settings: np.zeros((count, 1, 8, 8), np.uint8))
    done = CliRunner().invoke(main, ["load", served, "--images", "3"])
    assert isinstance(done.exception, FlyweightError)
    assert "takes [-1, 1, 2, 2] (-1 is any length), and the data set's images are [1, 8, 8]" in str(done.exception)


@pytest.fixture
def quick(monkeypatch):
    """A search that is over soon."""
    monkeypatch.setattr(tuning, "BATCHES", (8,))
    monkeypatch.setattr(tuning, "DELAYS_US", (0, 200_000))
    monkeypatch.setattr(tuning, "instances_and_threads", lambda cores: [(1, 1)])
    monkeypatch.setattr(tuning, "DUELS", 5)


@pytest.mark.extra
def test_a_delay_that_costs_is_found_and_written_and_nothing_is_left(triton, served, quick, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(
        "# mine\nserving: {queue_delay_us: 200000, instances: 1, max_batch_size: 8}  # slow\n"
    )
    (tmp_path / "recipes").mkdir()
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    monkeypatch.setattr("pipeline.tracking.rest.experiment_id", lambda: "0")
    logged = {}

    def log_run(kind, parameters, metrics, directory):
        logged.update(parameters=parameters, metrics=metrics, files=sorted(path.name for path in directory.iterdir()))
        return "http://mlflow/run"

    monkeypatch.setattr(other_run, "log_run", log_run)
    options = ["--seconds", "0.3", "--set", "budget.at_concurrency=1", "--set", "evaluate.concurrency=[1]"]
    done = CliRunner().invoke(main, ["tune-serving", served, *options])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    # a lone request waits the 200 ms in vain
    assert logged["metrics"]["ratio_low"] > 1.02, done.output
    written = "# mine\nserving: {queue_delay_us: 0, instances: 1, max_batch_size: 8}  # slow\n"
    assert (tmp_path / "params.yaml").read_text() == written
    assert logged["parameters"]["start.queue_delay_us"] == 200_000
    assert logged["parameters"]["chosen.queue_delay_us"] == 0
    assert logged["files"] == ["tuning.json", "tuning.md", "tuning.png"]
    assert "table and plot: http://mlflow/run" in done.output
    assert list(triton.repository.glob("*_tune*")) == []
    with Client() as client:
        assert client.ready(served)
        assert not [
            name for name, versions in client.index().items() if "_tune" in name and "READY" in versions.values()
        ]


@pytest.mark.extra
def test_settings_that_are_best_stay(triton, served, quick, tmp_path):
    start = Serving(instances=1, max_batch_size=8)
    budget = Budget(at_concurrency=1)
    found = tuning_run.search(start, budget, Promote(), tuning_run.promoted(served), seconds=0.3)
    assert not found.better
    assert found.chosen == start
    assert found.sentence.startswith("The settings as they are are best: 1 x 1 threads, batches up to 8, delay 0 us")


def test_what_was_not_promoted_is_named_with_what_was(triton, served):
    with pytest.raises(FlyweightError, match=rf"'loadet' has not been promoted into .*; it holds: .*{served}"):
        tuning_run.promoted("loadet")
