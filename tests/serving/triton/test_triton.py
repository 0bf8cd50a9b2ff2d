"""The protocol on the real local Triton: no request is lost or answered wrongly while versions change."""

import stat
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from serving_toys import QUICK, SHAPE, Clients, Registry, artifact, golden, images

from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.load import measure, processes, requests
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.rollback import rollback
from pipeline.serving.triton import server
from pipeline.serving.triton.client import Client, classify
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.temporary import remove_models, temporary_models
from pipeline.settings.serving import Serving

pytestmark = pytest.mark.integration


@pytest.fixture
def promote(triton, client, tmp_path):
    """Promotes to a model of this test's own; afterwards nothing of it is left in the server."""
    model = f"proxy_{tmp_path.name}"[:40].lower()
    registry = Registry(tmp_path / "registry.json")

    def run(what, demanded=None):
        settings = Serving(model=model, max_batch_size=8, instances=1)
        config = QUICK.model_copy(update={"load_timeout_s": 30.0})
        return promote_artifact(settings, what, demanded or golden(what), registry, {}, client, config)

    run.model, run.registry = model, registry
    yield run
    remove_models(client, model)


def test_promotions_and_rollbacks_under_load_lose_nothing(promote, client, tmp_path):
    one, two, three = (artifact(tmp_path, factor) for factor in (1.0, 2.0, 3.0))
    promote(one)
    with Clients(promote.model, [one.onnx, two.onnx, three.onnx]) as clients:
        clients.see(1)
        assert promote(two).previous_version == 1
        clients.see(2)
        assert promote(three).version == 3
        clients.see(3)
        assert rollback(promote.model, client) == 2
        clients.versions.clear()
        clients.see(2)
    assert clients.failed == []
    assert clients.wrong == 0
    assert 3 not in clients.versions[4:]  # but what was in flight, no answer is of the version that was left


def test_the_running_model_attests_what_it_serves(promote, client, tmp_path):
    one, two = artifact(tmp_path, 1.0), artifact(tmp_path, 2.0)
    promote(one)
    promote(two)
    assert client.attested(promote.model) == (two.sha256, 2)
    assert client.attested(promote.model, "1") == (one.sha256, 1)
    assert set(client.infer(promote.model, {"image": images(2)}).outputs) == {"logits"}  # no other request pays for it
    assert promote(two).reused


def test_temporary_models_answer_and_vanish(triton, client, tmp_path):
    models = [artifact(tmp_path, 1.0, "teacher"), artifact(tmp_path, 2.0, "int8")]
    settings = Serving(model="measured", instances=1)
    with temporary_models(settings, models) as names:
        for model in models:
            answer = client.infer(names[model.candidate], {"image": images(3)}).outputs
            np.testing.assert_array_equal(answer["logits"], OnnxRunner(model.onnx)({"image": images(3)})["logits"])
        result = measure.measure(names["int8"], "", images(4), concurrency=20, seconds=0.5, warmup=0.1)
    assert result.failures == 0
    assert result.requests > 20
    assert 0 < result.p50_ms <= result.p99_ms
    assert not client.ready(names["int8"])
    assert [path.name for path in triton.repository.glob("measured*")] == []


def test_failed_requests_are_counted_by_status(triton, promote, tmp_path):
    promote(artifact(tmp_path, 1.0))
    wrong_shape = np.zeros((1, 1, 2, 3), np.uint8)
    result = measure.measure(promote.model, "", wrong_shape, concurrency=2, seconds=0.2, warmup=0.0)
    assert result.failures == result.requests == result.errors["INVALID_ARGUMENT"] > 0
    assert result.throughput == 0
    assert result.p99_ms == float("inf")
    with pytest.raises(TritonError, match=r"the metadata of nobody: .*NOT_FOUND"):
        measure.measure("nobody", "", wrong_shape, concurrency=1, seconds=0.1)


@pytest.mark.extra
def test_images_larger_than_a_flow_control_window_arrive(triton, client, tmp_path):
    model = artifact(tmp_path, 1.0, "wide")
    settings = Serving(model="wide", instances=1, max_batch_size=20_000)
    with temporary_models(settings, [model]) as names:
        name = names["wide"]
        whole = SimpleNamespace(name="image", datatype="UINT8", shape=[20_000, *SHAPE])  # 80 kB: more than a window
        messages = requests.serialised(name, "", [whole], {"image": images(20_000)[None]})
        plan = {"address": triton.url, "window": 700_000_000, "windows": 3, "warmup": 0, "silence": 10}
        seen = processes.drive([{**plan, "loop": "closed", "concurrency": 3, "connections": 1}], messages)
    parts = [part for parts in seen.windows.values() for part in parts]
    assert [part["failures"] for part in parts] == [{}, {}, {}]
    assert sum(sum(part["latencies"]["counts"].values()) for part in parts) >= 3


def test_labels_come_from_the_server(promote, tmp_path):
    promote(artifact(tmp_path, 1.0))
    Image.new("RGB", (9, 9), (255, 255, 255)).save(tmp_path / "white.png")
    ((label, probability, version),) = classify([tmp_path / "white.png"], promote.model)
    assert (label, version) == ("all", 1)  # the weights of the last class are the largest
    assert probability == pytest.approx(1.0)


def test_errors_come_with_their_status(promote, client, tmp_path):
    promote(artifact(tmp_path, 1.0))
    with pytest.raises(TritonError, match=r"expected 4 dimensions|shape") as caught:
        client.infer(promote.model, {"image": np.zeros((1, 1, 2, 3), np.uint8)})
    assert caught.value.status == "INVALID_ARGUMENT"
    with pytest.raises(TritonError, match=r"an answer of nobody: Triton at .* says NOT_FOUND"):
        client.infer("nobody", {"image": images(1)})
    with (
        pytest.raises(TritonError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
        Client("127.0.0.1:9", timeout=1) as nowhere,
    ):
        nowhere.index()


def test_control_takes_the_key_and_is_closed_over_http(triton, client, promote, tmp_path):
    promote(artifact(tmp_path, 1.0))
    key = triton.home / "home" / "triton.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for path in ("index", f"models/{promote.model}/unload"):
        url = f"http://127.0.0.1:{triton.ports['http_port']}/v2/repository/{path}"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(url, data=b"", method="POST"))
    key.rename(key.with_suffix(".away"))
    try:
        with pytest.raises(TritonError, match=r"restricted|expecting"):
            client.unload(promote.model)
    finally:
        key.with_suffix(".away").replace(key)
    assert client.ready(promote.model)


def test_a_restart_serves_the_champion(triton, client, promote, tmp_path):
    two = artifact(tmp_path, 2.0)
    promote(artifact(tmp_path, 1.0))
    promote(two)
    (triton.repository / "half__cand").mkdir()
    (triton.repository / "half__cand" / "config.pbtxt").write_text("broken {")
    triton.stop()
    triton.start()
    deadline = time.monotonic() + 30
    while not client.ready(promote.model):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.attested(promote.model) == (two.sha256, 2)
    assert promote.model in server.served_models(triton.repository)
    assert "half__cand" not in server.served_models(triton.repository)
    remove_models(client, "half__cand")


def test_one_image_of_the_test_shape_is_one_request():
    assert images(1).shape == (1, *SHAPE)
