import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from PIL import Image
from serving_toys import free_port
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipeline.errors import DataError
from pipeline.machine.workspace import SOURCE
from pipeline.serving.triton.aio import AsyncClient
from pipeline.serving.triton.client import Client, load_image
from pipeline.serving.triton.errors import TritonError

INPUT = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}


class Fake(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with its input, after what `before` does: it gets the number of the call and its context."""

    def __init__(self, before=lambda call, context: None, version=lambda call: "1") -> None:
        self.calls, self.before, self.version = 0, before, version

    def ModelInfer(self, request, context):
        self.calls += 1
        self.before(self.calls, context)
        response = service_pb2.ModelInferResponse(model_name="m", model_version=self.version(self.calls))
        (tensor,) = request.inputs
        response.outputs.add(name="y", datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.extend(request.raw_input_contents)
        return response


@pytest.fixture
def serve():
    """Start a fake; return its address."""
    started = []

    def run(fake, port=0):
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        number = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        started.append(server)
        return f"127.0.0.1:{number}"

    yield run
    for server in started:
        server.stop(None)


def refuse_with(code, text, times=1):
    def before(call, context):
        if call <= times:
            context.abort(code, text)

    return before


def both(url, **options):
    """The same question of both clients."""

    async def ask():
        async with AsyncClient(url, **options) as client:
            return await client.infer("m", INPUT)

    def wait():
        with Client(url, **options) as client:
            return client.infer("m", INPUT)

    return [wait, lambda: asyncio.run(ask())]


def test_answers_come_back_with_their_version(serve):
    for ask in both(serve(Fake(version=lambda call: "7"))):
        answer = ask()
        assert answer.version == 7
        np.testing.assert_array_equal(answer.outputs["y"], INPUT["x"])


def test_a_lost_connection_is_asked_again_only_where_that_was_wanted(serve):
    lost = refuse_with(grpc.StatusCode.UNAVAILABLE, "Socket closed", times=2)
    for index in range(2):
        fake = Fake(lost)
        with pytest.raises(TritonError, match=r"an answer of m: Triton at .* says UNAVAILABLE: Socket closed"):
            both(serve(fake))[index]()
        assert fake.calls == 1
        fake = Fake(lost)
        assert both(serve(fake), retries=2)[index]().version == 1
        assert fake.calls == 3


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "the model is overloaded: more than 4 requests wait"),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
        (grpc.StatusCode.INVALID_ARGUMENT, "Socket closed"),
        (grpc.StatusCode.INTERNAL, "no"),
    ],
)
def test_what_the_server_refused_is_never_asked_again(serve, code, text):
    for index in range(2):
        fake = Fake(refuse_with(code, text, times=9))
        with pytest.raises(TritonError) as caught:
            both(serve(fake), retries=5)[index]()
        assert (caught.value.status, fake.calls) == (code.name, 1)


def test_a_server_that_is_not_there_yet_is_waited_for(serve):
    port = free_port()
    threading.Timer(0.5, lambda: serve(Fake(), port)).start()
    with Client(f"127.0.0.1:{port}", timeout=60, retries=30) as client:
        assert client.infer("m", INPUT).version == 1
    with Client(f"127.0.0.1:{free_port()}", timeout=5) as client, pytest.raises(TritonError, match="UNAVAILABLE"):
        client.infer("m", INPUT)


def test_the_deadline_holds_for_all_tries_together(serve):
    slow = Fake(lambda call, context: time.sleep(2))
    for ask in both(serve(slow), timeout=0.2, retries=50):
        begin = time.monotonic()
        with pytest.raises(TritonError) as caught:
            ask()
        assert caught.value.status == "DEADLINE_EXCEEDED"
        assert time.monotonic() - begin < 2
    assert slow.calls == 2


def test_rows_are_asked_in_parts_and_put_together(serve):
    fake = Fake()
    many = {"x": np.arange(40, dtype=np.int64).reshape(20, 2)}
    with Client(serve(fake)) as client:
        np.testing.assert_array_equal(client.infer_rows("m", many, rows=6).outputs["y"], many["x"])
    assert fake.calls == 4


def test_a_version_that_changes_between_parts_is_not_mixed(serve):
    with (
        Client(serve(Fake(version=lambda call: "1" if call < 3 else "2"))) as client,
        pytest.raises(
            TritonError, match="m changed from version 1 to 2 under way: ask again, or name a version"
        ) as caught,
    ):
        client.infer_rows("m", INPUT, rows=1)
    assert caught.value.status == "ABORTED"


def test_what_triton_has_no_type_for_is_named(serve):
    with Client(serve(Fake())) as client, pytest.raises(TypeError, match="input 'x' is an array of complex128"):
        client.infer("m", {"x": np.ones(2, np.complex128)})


def test_an_image_becomes_raw_pixels_of_the_models_shape(tmp_path):
    Image.new("RGB", (10, 6), (255, 0, 0)).save(tmp_path / "red.png")
    colour = load_image(tmp_path / "red.png", (3, 8, 4))
    assert (colour.shape, colour.dtype) == ((3, 8, 4), np.uint8)
    assert colour[0].min() == 255
    assert colour[1:].max() == 0
    assert load_image(tmp_path / "red.png", (1, 8, 4)).max() == 76  # ITU-R 601: 0.299 of red


def test_a_file_of_the_right_size_is_not_changed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png", (1, 5, 7))[0], pixels)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "junk.png").write_text("junk")
    with pytest.raises(DataError, match=r"junk\.png is not an image that can be read .*give a PNG or JPEG"):
        load_image(tmp_path / "junk.png", (1, 2, 2))
    with pytest.raises(DataError, match="a model of 5 channels: image files have 1"):
        load_image(tmp_path / "junk.png", (5, 2, 2))


@pytest.mark.integration
def test_a_script_that_has_closed_its_client_ends_in_silence():
    code = "from pipeline.serving.triton.client import Client\nwith Client('127.0.0.1:1') as client:\n    print(client.live())"
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
