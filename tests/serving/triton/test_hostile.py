"""What is not meant well, at a real Triton: a clear status each, and the server stays up."""

import http.client

import grpc
import numpy as np
import onnx_toys as toys
import pytest
from serving_toys import SHAPE, artifact, images, remove_model
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipeline.serving.triton import repository
from pipeline.serving.triton.artifact import from_file
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError
from pipeline.settings.serving import Serving

pytestmark = pytest.mark.integration
ROW = [1, 16]
BOTH = [("INPUT0", "INT32", ROW), ("INPUT1", "INT32", ROW)]


@pytest.fixture(scope="module")
def stub(triton_server, tmp_path_factory):
    """A raw gRPC stub for a Triton that serves `simple` and `proxy_h`."""
    folder = tmp_path_factory.mktemp("hostile")
    models = {"simple_h": from_file(toys.add_sub(folder / "simple.onnx")), "proxy_h": artifact(folder, 1.0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLYWEIGHT_HOME", str(triton_server.home / "home"))
        patch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(triton_server.repository))
        with Client(triton_server.url, timeout=60) as client, grpc.insecure_channel(triton_server.url) as channel:
            for name, model in models.items():
                settings = Serving(model=name, instances=1, max_batch_size=8)
                repository.write_model(triton_server.repository / name, model, settings, 1)
                client.load(name, 120)
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for name in models:
                remove_model(client, name)


@pytest.fixture(autouse=True)
def the_server_stays_up(stub, triton_server):
    """After each test the same process answers as before."""
    process = triton_server.process.pid
    yield
    assert triton_server.process.poll() is None
    assert triton_server.process.pid == process
    answer = stub.ModelInfer(request(), timeout=60)
    assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == [0] * 16


def request(name="simple_h", version="", inputs=BOTH, raw=(bytes(64), bytes(64))):
    asked = service_pb2.ModelInferRequest(model_name=name, model_version=version)
    for tensor, datatype, shape in inputs:
        asked.inputs.add(name=tensor, datatype=datatype, shape=shape)
    asked.raw_input_contents.extend(raw)
    return asked


def refused(stub, asked):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asked, timeout=60)
    return caught.value.code().name, caught.value.details()


@pytest.mark.parametrize(
    "name", ["../simple_h", "simple_h/1", "a/b", "/etc/passwd", "..", ".", "", "модель", "x" * 4_000]
)
def test_names_that_are_paths_are_unknown_models(stub, name):
    status, text = refused(stub, request(name))
    assert (status, "is not found" in text) == ("NOT_FOUND", True)


def test_a_name_of_a_megabyte_is_refused(stub):
    assert refused(stub, request("x" * 2**20))[0] in {"NOT_FOUND", "RESOURCE_EXHAUSTED"}


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("20260821142538123456", "INVALID_ARGUMENT"),
        ("9223372036854775807", "NOT_FOUND"),
        ("99", "NOT_FOUND"),
        ("0", "NOT_FOUND"),
        ("-1", "INVALID_ARGUMENT"),
        ("../1", "INVALID_ARGUMENT"),
        ("one", "INVALID_ARGUMENT"),
    ],
)
def test_versions_that_are_none_are_refused(stub, version, wanted):
    assert refused(stub, request(version=version))[0] == wanted


def tensors(shape, datatype="INT32"):
    return [("INPUT0", datatype, shape), ("INPUT1", datatype, shape)]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (request(inputs=tensors(ROW, "FP32")), "data-type is 'FP32', but model 'simple_h' expects 'INT32'"),
        (request(inputs=tensors(ROW, "NOPE")), "data-type is '<invalid>'"),
        (request(inputs=tensors(ROW, "BYTES")), "data-type is 'BYTES'"),
        (request(inputs=tensors([16])), "batch"),
        (request(inputs=tensors([9, 16]), raw=[bytes(576)] * 2), "batch-size must be <= 8"),
        (request(inputs=tensors([-1, 16])), "simple_h"),
        (request(inputs=tensors([2**62, 16])), "simple_h"),
        (request(inputs=tensors([2**60, 16])), "batch size"),
        (request(inputs=tensors([2**58 + 1, 16])), "simple_h"),
        (request(inputs=tensors([2**32 + 1, 16])), "simple_h"),
        (request(inputs=tensors([0, 16]), raw=[b"", b""]), "simple_h"),
        (
            request(inputs=[BOTH[0], ("INPUT1", "INT32", [2, 16])], raw=[bytes(64), bytes(128)]),
            "does not match other inputs",
        ),
        (request(inputs=BOTH[:1], raw=[bytes(64)]), "expected 2 inputs but got 1"),
        (request(inputs=[BOTH[0], BOTH[0]]), "already exists in request"),
        (request(inputs=[*BOTH, ("X", "INT32", ROW)], raw=[bytes(64)] * 3), "expected 2 inputs but got 3"),
        (request(raw=[]), "unable to find data for input tensor"),
        (request(raw=[bytes(63), bytes(64)]), "Expected 64, got 63"),
        (request(raw=[bytes(64 * 2**20), bytes(64)]), "Expected 64, got 67108864"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value[:30],
)
def test_malformed_and_giant_tensors_are_refused_with_the_reason(stub, asked, says):
    status, text = refused(stub, asked)
    assert status in {"INVALID_ARGUMENT", "INTERNAL"}
    assert says in text


@pytest.mark.parametrize("rows", [2**32 + 1, 2**62 + 1])
def test_a_batch_beyond_32_bits_is_answered_as_the_row_that_was_sent_at_most(stub, rows):
    """Triton 2.51 keeps the last 32 bits of a batch's size. Nothing beyond the bytes that came is read."""
    asked = request("proxy_h", inputs=[("image", "UINT8", [rows, *SHAPE])], raw=[bytes([1, 2, 3, 4])])
    right = stub.ModelInfer(
        request("proxy_h", inputs=[("image", "UINT8", [1, *SHAPE])], raw=[bytes([1, 2, 3, 4])]), timeout=60
    )
    try:
        answer = stub.ModelInfer(asked, timeout=60)
    except grpc.RpcError as error:
        assert error.code().name in {"INVALID_ARGUMENT", "INTERNAL"}
    else:
        assert list(answer.outputs[0].shape) == [1, 3]
        assert answer.raw_output_contents[0] == right.raw_output_contents[0]


def test_shared_memory_that_nobody_registered_is_refused(stub):
    asked = request(raw=[])
    for tensor in asked.inputs:
        tensor.parameters["shared_memory_region"].string_param = "nobody's"
        tensor.parameters["shared_memory_byte_size"].int64_param = 64
    assert refused(stub, asked)[0] == "NOT_FOUND"


@pytest.mark.parametrize("name", ["../simple_h", "simple_h/1", "..", ".", "a/b"])
def test_even_the_promoters_key_loads_no_path(stub, triton, name):
    with Client(timeout=60) as client, pytest.raises(TritonError) as caught:
        client.load(name, 60)
    assert caught.value.status in {"INTERNAL", "INVALID_ARGUMENT"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "wanted"),
    [
        ("models/simple_h/infer", b"{", {}, {400, 500}),
        ("models/simple_h/infer", b"", {}, {400}),
        ("models/simple_h/infer", b"[" * 100_000, {}, {400, 500}),
        ("models/..%2f..%2fetc/infer", b"{}", {}, {404}),
        ("models/../../etc/infer", b"{}", {}, {404}),
        ("models/simple_h/versions/20260821142538123456/infer", b"{}", {}, {400}),
        ("models/simple_h/versions/one/infer", b"{}", {}, {400, 404}),
        ("models/simple_h/infer", b"{}", {"Inference-Header-Content-Length": "-5"}, {400}),
        ("models/simple_h/infer", b"{}", {"Inference-Header-Content-Length": "9" * 20}, {400}),
        ("models/simple_h/infer", b"xx", {"Content-Encoding": "gzip"}, {400, 500}),
        ("models/simple_h/infer", b'{"inputs":[{"name":"INPUT0","shape":"x","datatype":5,"data":{}}]}', {}, {400, 500}),
    ],
)
def test_malformed_http_is_refused(triton, path, body, headers, wanted):
    connection = http.client.HTTPConnection("127.0.0.1", triton.ports["http_port"], timeout=60)
    connection.request("POST", f"/v2/{path}", body, headers)
    response = connection.getresponse()
    assert response.status in wanted
    assert b"error" in response.read()
    connection.close()


def test_a_whole_image_is_answered_beside_all_this(stub, triton):
    with Client(timeout=60) as client:
        assert client.infer("proxy_h", {"image": images(3)}).outputs["logits"].shape == (3, 3)
