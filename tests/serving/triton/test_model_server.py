"""What a real Triton serves with our config and model.py: any interface, and each request of a batch on its own."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import onnx_toys as toys
import pytest
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper
from serving_toys import SHAPE, Server, artifact, images, remove_model

from pipeline.machine.workspace import SOURCE
from pipeline.serving.triton import repository
from pipeline.serving.triton.aio import AsyncClient
from pipeline.serving.triton.artifact import from_file, golden_answers, made_up
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError
from pipeline.settings.serving import Serving

pytestmark = pytest.mark.integration


@pytest.fixture
def client(triton):
    with Client(timeout=60) as client:
        yield client


@pytest.fixture
def serve(triton, client, tmp_path):
    """Serve an artifact under its own name; afterwards nothing of it is left."""
    served = []

    def run(what, **settings):
        name = f"{what.candidate}_{tmp_path.name}".lower().replace("-", "_")[:60]
        config = Serving(model=name, **{"max_batch_size": 8, "instances": 1, **settings})
        repository.write_model(triton.repository / name, what, config, 1)
        served.append(name)
        client.load(name, 120)
        return name

    yield run
    for name in served:
        remove_model(client, name)


def make(tmp_path, toy, **options):
    return from_file(toy(tmp_path / f"{toy.__name__}.onnx", **options))


@pytest.mark.parametrize("toy", [toys.add_sub, toys.every_type, toys.without_batch, toys.mixing])
def test_any_interface_is_answered_as_onnx_runtime_does(serve, client, tmp_path, toy):
    model = make(tmp_path, toy)
    expected = golden_answers(model, made_up(model.spec, rows=3))
    answer = client.infer(serve(model), expected.inputs, attest=True)
    attested = answer.outputs.pop(repository.ATTESTED)
    assert {row.tobytes().hex() for row in attested} == {model.sha256}
    assert {name: array.dtype for name, array in answer.outputs.items()} == {
        name: array.dtype for name, array in expected.outputs.items()
    }
    for name, array in expected.outputs.items():
        np.testing.assert_array_equal(answer.outputs[name], array)


def test_one_bad_request_of_a_batch_fails_alone(serve, client, tmp_path):
    name = serve(make(tmp_path, toys.table), max_batch_size=16, queue_delay_us=200_000)

    async def ask():
        async with AsyncClient(timeout=60) as asker:
            asked = [np.array([[row % 4, 99 if row == 5 else 1]]) for row in range(12)]
            return await asyncio.gather(*(asker.infer(name, {"index": one}) for one in asked), return_exceptions=True)

    answers = asyncio.run(ask())
    bad = answers.pop(5)
    assert isinstance(bad, TritonError)
    assert "idx=99 must be within the inclusive range" in str(bad)
    rows = [row for row in range(12) if row != 5]
    assert [answer.outputs["found"].tolist() for answer in answers] == [[[row % 4 * 10, 10]] for row in rows]
    (counts,) = client._client.get_inference_statistics(name).model_stats
    warm_up = 2
    assert counts.execution_count - warm_up < 12  # they were put together


def test_answers_of_parts_are_put_together(serve, client, tmp_path):
    name = serve(make(tmp_path, toys.add_sub))
    inputs = {"INPUT0": np.arange(1600, dtype=np.int32).reshape(100, 16), "INPUT1": np.ones((100, 16), np.int32)}

    async def ask():
        async with AsyncClient(timeout=60) as asker:
            assert await asker.ready(name)
            return await asker.infer_rows(name, inputs, rows=8)

    for answer in (client.infer_rows(name, inputs, rows=7), asyncio.run(ask())):
        np.testing.assert_array_equal(answer.outputs["OUTPUT0"], inputs["INPUT0"] + 1)
        assert answer.version == 1


def test_inputs_can_go_through_shared_memory(serve, tmp_path):
    name = serve(make(tmp_path, toys.add_sub))
    with Client(timeout=60, shared_memory=True) as client:
        for rows in (2, 8, 3):  # the region grows, and is used again
            first = np.random.default_rng(rows).integers(0, 99, (rows, 16), dtype=np.int32)
            answer = client.infer(name, {"INPUT0": first, "INPUT1": 2 * first})
            np.testing.assert_array_equal(answer.outputs["OUTPUT0"], 3 * first)
        assert len(client._client.get_system_shared_memory_status().regions) == 1
    with Client() as client:
        assert len(client._client.get_system_shared_memory_status().regions) == 0


def test_classes_are_answered_by_name(serve, client, tmp_path):
    name = serve(artifact(tmp_path, 1.0, "named"))
    assert client.labels(name) == ["none", "some", "all"]


def test_priorities_are_taken(serve, client, tmp_path):
    name = serve(make(tmp_path, toys.add_sub), priority_levels=2)
    ones = np.ones((1, 16), np.int32)
    assert client.infer(name, {"INPUT0": ones, "INPUT1": ones}).outputs["OUTPUT0"].tolist() == [[2] * 16]
    tensors = [_tensor("INPUT0", ones), _tensor("INPUT1", ones)]
    assert client._client.infer(name, tensors, priority=1).as_numpy("OUTPUT1").tolist() == [[0] * 16]
    levels = client._client.get_model_config(name).config.dynamic_batching
    assert (levels.priority_levels, levels.default_priority_level) == (2, 2)


def _tensor(name, array):
    tensor = grpcclient.InferInput(name, array.shape, "INT32")
    tensor.set_data_from_numpy(array)
    return tensor


def test_plain_http_gets_answers_too(serve, triton, tmp_path):
    name = serve(make(tmp_path, toys.add_sub))
    tensor = {"shape": [1, 16], "datatype": "INT32"}
    body = {
        "inputs": [
            {"name": "INPUT0", "data": list(range(16)), **tensor},
            {"name": "INPUT1", "data": [1] * 16, **tensor},
        ]
    }
    url = f"http://127.0.0.1:{triton.ports['http_port']}/v2/models/{name}/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as response:
        outputs = {output["name"]: output["data"] for output in json.load(response)["outputs"]}
    assert outputs == {"OUTPUT0": list(range(1, 17)), "OUTPUT1": list(range(-1, 15))}


def test_the_example_over_plain_http_runs(serve, triton, tmp_path):
    weights = {"weights": np.arange(784 * 3, dtype=np.float32).reshape(784, 3)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    inputs = [("image", TensorProto.UINT8, ["N", 1, 28, 28])]
    outputs = [("logits", TensorProto.FLOAT, ["N", 3])]
    file = toys.write(tmp_path / "digits.onnx", nodes, inputs, outputs, weights)
    name = serve(from_file(file, ("shirt", "shoe", "bag")))
    text = (SOURCE / "examples" / "http_client.py").read_text(encoding="utf-8")
    text = text.replace("127.0.0.1:8000/v2/models/proxy", f"127.0.0.1:{triton.ports['http_port']}/v2/models/{name}")
    (tmp_path / "picture").write_bytes(bytes([1] * 784))
    program = [sys.executable, "-c", text, str(tmp_path / "picture")]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"\['[\d.]+:2:bag', '[\d.]+:1:shoe', '[\d.]+:0:shirt'\] from version 1\n", said)


def test_nothing_is_written_into_the_repository(serve, client, triton, tmp_path):
    name = serve(make(tmp_path, toys.add_sub), instances=2)
    client.ready(name)
    guards = list((triton.repository / name).rglob("__pycache__"))
    assert len(guards) == 1
    assert guards[0].is_file()


def overloaded(name, clients, seconds):
    """Ask from many threads at once for a while; return how many were answered, and the statuses of the others."""
    answered, refused, stop = [], [], threading.Event()

    def ask():
        with Client(timeout=30) as client:
            while not stop.is_set():
                try:
                    client.infer(name, {"image": images(8)})
                    answered.append(1)
                except TritonError as error:
                    refused.append((error.status, str(error)))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return len(answered), refused


def test_more_than_may_wait_are_refused_and_nobody_else_is(serve, client, tmp_path):
    heavy = toys.heavy(tmp_path / "heavy.onnx", SHAPE)
    name = serve(from_file(heavy), max_queue_size=4, max_batch_size=8)
    answered, refused = overloaded(name, clients=24, seconds=4)
    assert answered > 0
    assert {status for status, _ in refused} == {"UNAVAILABLE"}
    assert "the model is overloaded: more than 4 requests wait" in refused[0][1]
    answered, refused = overloaded(name, clients=2, seconds=1)  # and all is well when the load has gone
    assert answered > 0
    assert refused == []


@pytest.fixture(scope="module")
def encrypted(triton_server, tmp_path_factory):
    """A second real Triton whose clients must show a certificate."""
    home = tmp_path_factory.mktemp("encrypted")
    (home / "triton_repo").mkdir()
    script = SOURCE / "infra" / "make_certificates.py"
    subprocess.run([sys.executable, script, home / "tls", "127.0.0.1"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLYWEIGHT_HOME", str(triton_server.home / "home"))
        patch.setenv("FLYWEIGHT_TRITON_TLS", str(home / "tls"))
        patch.setenv("FLYWEIGHT_TRITON_MUTUAL_TLS", "1")
        repository.write_model(
            home / "triton_repo" / "simple", make(home, toys.add_sub), Serving(model="simple", instances=1), 1
        )
        server = Server(home)
        server.start()
        yield server
        server.stop()


def test_who_shows_a_certificate_is_answered_and_nobody_else_is(encrypted, triton_server, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_HOME", str(triton_server.home / "home"))
    ones = np.ones((1, 16), np.int32)
    inputs = {"INPUT0": ones, "INPUT1": ones}
    with Client(encrypted.url, timeout=60, retries=3) as client:
        assert client.infer("simple", inputs).outputs["OUTPUT0"].tolist() == [[2] * 16]
        client.load("simple", 60)  # the promoter's key goes through as well

    async def ask():
        async with AsyncClient(encrypted.url, timeout=60) as client:
            return await client.infer("simple", inputs)

    assert asyncio.run(ask()).version == 1
    for what in ("FLYWEIGHT_TRITON_MUTUAL_TLS", "FLYWEIGHT_TRITON_TLS"):
        monkeypatch.delenv(what)  # first without a certificate of its own, then without any encryption
        with Client(encrypted.url, timeout=3) as stranger, pytest.raises(TritonError) as caught:
            stranger.infer("simple", inputs)
        assert caught.value.status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def test_a_server_that_another_authority_vouches_for_is_not_trusted(encrypted, tmp_path, monkeypatch):
    subprocess.run(
        [sys.executable, SOURCE / "infra" / "make_certificates.py", tmp_path / "tls", "127.0.0.1"], check=True
    )
    monkeypatch.setenv("FLYWEIGHT_TRITON_TLS", str(tmp_path / "tls"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_MUTUAL_TLS", "1")
    with Client(encrypted.url, timeout=3) as client:
        assert not client.live()
