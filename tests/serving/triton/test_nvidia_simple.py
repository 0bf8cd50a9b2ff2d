"""What NVIDIA's client examples ask of their model `simple`, asked of our own file promoted with `flyweight promote --onnx`.

The examples (https://github.com/triton-inference-server/client/tree/main/src/python/examples) are not part of this
repository; ``benchmarks/nvidia_examples.py`` fetches and runs them as they are. Here are the calls that they make.
"""

import asyncio
import queue

import grpc
import numpy as np
import onnx_toys as toys
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcclient_aio
import tritonclient.utils.shared_memory as shm
from click.testing import CliRunner
from serving_toys import Registry, remove_model
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from pipeline.cli.main import main
from pipeline.serving.triton.client import Client

pytestmark = pytest.mark.integration
FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
SECOND = np.ones((1, 16), np.int32)
SUM, DIFFERENCE = FIRST + SECOND, FIRST - SECOND


@pytest.fixture(scope="module")
def url(triton_server, tmp_path_factory):
    """A real Triton in which our command has promoted the model."""
    folder = tmp_path_factory.mktemp("simple")
    file = toys.add_sub(folder / "model.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLYWEIGHT_HOME", str(triton_server.home / "home"))
        patch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(triton_server.repository))
        patch.setenv("FLYWEIGHT_TRITON_GRPC", triton_server.url)
        patch.setattr("pipeline.tracking.registry.model_registry", lambda: Registry(folder / "registry.json"))
        arguments = ["promote", "--onnx", str(file), "--name", "simple", "--set", "promote.observe_s=0"]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert "simple serves version 1 (replaced version none), SHA-256" in done.output
        yield triton_server.url
        with Client(timeout=60) as client:
            remove_model(client, "simple")


@pytest.fixture
def client(url):
    with grpcclient.InferenceServerClient(url) as client:
        yield client


def inputs(kind=grpcclient):
    tensors = [kind.InferInput("INPUT0", [1, 16], "INT32"), kind.InferInput("INPUT1", [1, 16], "INT32")]
    for tensor, array in zip(tensors, (FIRST, SECOND), strict=True):
        tensor.set_data_from_numpy(array)
    return tensors


def outputs(kind=grpcclient):
    return [kind.InferRequestedOutput("OUTPUT0"), kind.InferRequestedOutput("OUTPUT1")]


def is_right(result):
    outputs = [result.as_numpy(name) for name in ("OUTPUT0", "OUTPUT1")]
    return all(np.array_equal(found, right) for found, right in zip(outputs, (SUM, DIFFERENCE), strict=True))


def test_synchronous_with_and_without_named_outputs(client):
    assert is_right(client.infer("simple", inputs(), outputs=outputs(), headers={"test": "1"}))
    assert is_right(client.infer("simple", inputs(), outputs=None))
    assert len(client.get_inference_statistics("simple").model_stats) == 1
    one = client.infer("simple", inputs(), outputs=outputs()[1:])
    assert one.as_numpy("OUTPUT0") is None
    np.testing.assert_array_equal(one.as_numpy("OUTPUT1"), DIFFERENCE)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_answered_alike(client, algorithm):
    assert is_right(client.infer("simple", inputs(), outputs=outputs(), compression_algorithm=algorithm))


def test_callbacks(client):
    done = queue.Queue()
    for _ in range(3):
        client.async_infer("simple", inputs(), lambda result, error: done.put((result, error)), outputs=outputs())
    for _ in range(3):
        result, error = done.get(timeout=60)
        assert error is None
        assert is_right(result)


def test_event_loop(url):
    async def ask():
        async with grpcclient_aio.InferenceServerClient(url) as client:
            asked = [client.infer("simple", inputs(grpcclient_aio), outputs=None) for _ in range(2)]
            return await asyncio.gather(*asked)

    results = asyncio.run(ask())
    assert len(results) == 2
    for result in results:
        assert is_right(result)


def test_with_keep_alive_or_channel_arguments_it_is_answered_alike(url):
    keep_alive = grpcclient.KeepAliveOptions(30_000, 20_000, False, 2)
    with grpcclient.InferenceServerClient(url, keepalive_options=keep_alive) as client:
        assert is_right(client.infer("simple", inputs(), outputs=outputs()))
    with grpcclient.InferenceServerClient(url, channel_args=[("grpc.primary_user_agent", "flyweight")]) as client:
        assert is_right(client.infer("simple", inputs(), outputs=outputs()))


def test_health_metadata_and_configuration(client):
    assert client.is_server_live(headers={"test": "1", "dummy": "2"})
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.get_server_metadata().name == "triton"
    metadata = client.get_model_metadata("simple")
    assert metadata.name == "simple"
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.get_model_metadata("wrong_model_name")
    assert client.get_model_config("simple").config.name == "simple"


def test_contents_instead_of_raw_bytes(url):
    request = service_pb2.ModelInferRequest(model_name="simple")
    for name, values in (("INPUT0", range(16)), ("INPUT1", [1] * 16)):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        tensor.contents.int_contents[:] = values
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(request, timeout=60)
        found = {
            output.name: np.frombuffer(raw, np.int32)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        np.testing.assert_array_equal(found["OUTPUT0"], SUM[0])
        np.testing.assert_array_equal(found["OUTPUT1"], DIFFERENCE[0])
        request.raw_input_contents.append(bytes(32))
        with pytest.raises(grpc.RpcError, match="contents field must not be specified when using raw_input_contents"):
            stub.ModelInfer(request, timeout=60)


def test_system_shared_memory_for_inputs_and_outputs(client):
    client.unregister_system_shared_memory()
    size = FIRST.nbytes
    regions = {kind: shm.create_shared_memory_region(f"{kind}_data", f"/{kind}_fw", 2 * size) for kind in ("in", "out")}
    try:
        for kind in regions:
            client.register_system_shared_memory(f"{kind}_data", f"/{kind}_fw", 2 * size)
        shm.set_shared_memory_region(regions["in"], [FIRST])
        shm.set_shared_memory_region(regions["in"], [SECOND], offset=size)
        tensors, wanted = inputs(), outputs()
        for index in range(2):
            tensors[index].set_shared_memory("in_data", size, offset=index * size)
            wanted[index].set_shared_memory("out_data", size, offset=index * size)
        client.infer("simple", tensors, outputs=wanted)
        for expected, offset in ((SUM, 0), (DIFFERENCE, size)):
            found = shm.get_contents_as_numpy(regions["out"], np.int32, [1, 16], offset=offset)
            np.testing.assert_array_equal(found, expected)
        assert len(client.get_system_shared_memory_status().regions) == 2
    finally:
        client.unregister_system_shared_memory()
        for region in regions.values():
            shm.destroy_shared_memory_region(region)


def test_objects_can_be_used_again(client):
    tensors, wanted = inputs(), outputs()
    for number in range(3):
        tensors[1].set_data_from_numpy(SECOND * number)
        result = client.infer("simple", tensors, outputs=wanted)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), FIRST + number)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), FIRST - number)
