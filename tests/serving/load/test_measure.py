from types import SimpleNamespace

import numpy as np
import pytest
from fake_model_server import FakeModelServer
from tritonclient.grpc import service_pb2

from pipeline.errors import FlyweightError
from pipeline.serving.load import measure
from pipeline.serving.load.measure import Closed, Open, drive, is_stable

MS = 1_000_000


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([(100.0, 5.0), (110.0, 5.0), (105.0, 5.5)], True),  # exactly 10 %
        ([(100.0, 5.0), (111.0, 5.0), (105.0, 5.0)], False),  # throughput
        ([(100.0, 5.0), (100.0, 5.6), (100.0, 5.0)], False),  # latency
        ([(9.0, 90.0), (100.0, 5.0), (100.0, 5.0), (100.0, 5.0)], True),  # the first is over
        ([(100.0, 5.0), (100.0, 5.0)], False),
        ([(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], False),
    ],
)
def test_stable_is_when_three_windows_differ_by_a_tenth_at_most(windows, expected):
    assert is_stable(windows) is expected


def plan(server, windows):
    return {
        **{"address": server.address, "window": 200 * MS, "windows": windows, "warmup": 100 * MS, "silence": 20},
        **{"loop": "closed", "concurrency": 1, "connections": 1},
    }


def test_patience_ends_when_three_windows_agree():
    server = FakeModelServer(seconds=0.005)
    calls = []

    def snapshot():
        calls.append(server.answered)
        server.seconds = 0.005 if len(calls) == 1 else 0.02  # slower from the second window on

    told = []
    seen = drive([plan(server, 40)], [b"one"], snapshot, told.append)
    server.stop()
    assert seen.stable
    assert 4 <= len(seen.windows) < 40
    assert len(calls) == len(seen.windows) + 1 == len(told)  # before the first window and after each; the last is 1.0
    assert told[-1] == 1.0


def metadata(*inputs):
    tensors = [SimpleNamespace(name=name, datatype=datatype, shape=shape) for name, datatype, shape in inputs]
    return SimpleNamespace(name="toy", inputs=tensors)


def test_zeros_have_the_served_shape_whatever_the_model():
    found = metadata(("image", "UINT8", [-1, 3, -1, 8]), ("mask", "INT32", [-1, 16]))
    made = measure.zeros(found)
    assert {name: (array.shape, array.dtype) for name, array in made.items()} == {
        "image": ((1, 3, 1, 8), np.uint8),
        "mask": ((1, 16), np.int32),
    }
    (message,) = measure._requests("toy", "3", found.inputs, made)
    request = service_pb2.ModelInferRequest.FromString(message)
    assert (request.model_name, request.model_version) == ("toy", "3")
    assert [list(tensor.shape) for tensor in request.inputs] == [[1, 3, 1, 8], [1, 16]]
    assert [len(raw) for raw in request.raw_input_contents] == [24, 64]


def test_a_model_without_a_batch_axis_gets_its_own_shape():
    found = metadata(("x", "FP32", [4, 2]))
    (message,) = measure._requests("toy", "", found.inputs, measure.zeros(found))
    assert list(service_pb2.ModelInferRequest.FromString(message).inputs[0].shape) == [4, 2]


def test_text_is_refused():
    with pytest.raises(FlyweightError, match="toy takes text as 'words'; the load generator sends numbers and images"):
        measure.zeros(metadata(("words", "BYTES", [-1, 1])))


def test_at_most_256_rows_are_sent_each_as_the_type_that_the_model_takes():
    found = metadata(("x", "FP32", [-1, 2]))
    messages = measure._requests("toy", "", found.inputs, {"x": np.arange(600, dtype=np.uint8).reshape(300, 2)})
    assert len(messages) == 256
    raw = service_pb2.ModelInferRequest.FromString(messages[7]).raw_input_contents[0]
    np.testing.assert_array_equal(np.frombuffer(raw, np.float32), [14, 15])


def test_processes_share_a_load_without_loss():
    assert [share["concurrency"] for share in measure._shares(Closed(7), 3)] == [3, 2, 2]
    assert [share["connections"] for share in measure._shares(Closed(40), 2)] == [2, 2]
    shares = measure._shares(Open(90.0, "constant"), 2)
    assert [(share["rate"], share["place"], share["of"]) for share in shares] == [(90.0, 0, 2), (90.0, 1, 2)]
