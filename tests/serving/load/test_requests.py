from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from pipeline.errors import FlyweightError
from pipeline.serving.load import requests


def metadata(*inputs):
    tensors = [SimpleNamespace(name=name, datatype=datatype, shape=shape) for name, datatype, shape in inputs]
    return SimpleNamespace(name="toy", inputs=tensors)


def test_zeros_have_the_served_shape_whatever_the_model():
    found = metadata(("image", "UINT8", [-1, 3, -1, 8]), ("mask", "INT32", [-1, 16]))
    made = requests.zeros(found)
    assert {name: (array.shape, array.dtype) for name, array in made.items()} == {
        "image": ((1, 3, 1, 8), np.uint8),
        "mask": ((1, 16), np.int32),
    }
    (message,) = requests.serialised("toy", "3", found.inputs, made)
    request = service_pb2.ModelInferRequest.FromString(message)
    assert (request.model_name, request.model_version) == ("toy", "3")
    assert [list(tensor.shape) for tensor in request.inputs] == [[1, 3, 1, 8], [1, 16]]
    assert [len(raw) for raw in request.raw_input_contents] == [24, 64]


def test_a_model_without_a_batch_axis_gets_its_own_shape():
    found = metadata(("x", "FP32", [4, 2]))
    (message,) = requests.serialised("toy", "", found.inputs, requests.zeros(found))
    assert list(service_pb2.ModelInferRequest.FromString(message).inputs[0].shape) == [4, 2]


def test_text_is_refused():
    with pytest.raises(FlyweightError, match="toy takes text as 'words'; the load generator sends numbers and images"):
        requests.zeros(metadata(("words", "BYTES", [-1, 1])))


def test_at_most_256_rows_are_sent_each_as_the_type_that_the_model_takes():
    found = metadata(("x", "FP32", [-1, 2]))
    messages = requests.serialised("toy", "", found.inputs, {"x": np.arange(600, dtype=np.uint8).reshape(300, 2)})
    assert len(messages) == 256
    raw = service_pb2.ModelInferRequest.FromString(messages[7]).raw_input_contents[0]
    np.testing.assert_array_equal(np.frombuffer(raw, np.float32), [14, 15])
