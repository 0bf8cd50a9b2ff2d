"""The requests that a load consists of: serialised once, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from pipeline.errors import FlyweightError

_MAXIMUM_REQUESTS = 256
"""Different requests that are sent in turn; more would only fill memory."""


def serialised(model: str, version: str, tensors: Sequence[Any], inputs: Mapping[str, NDArray]) -> list[bytes]:
    """Return serialised inference requests of one row each."""
    rows = min(_MAXIMUM_REQUESTS, *(len(rows) for rows in inputs.values()))
    made = []
    for row in range(rows):
        request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
        for tensor in tensors:
            array = inputs[tensor.name][row].astype(_type(tensor.datatype), copy=False)
            batched = array[None] if tensor.shape and tensor.shape[0] < 0 else array
            request.inputs.add(name=tensor.name, datatype=tensor.datatype).shape.extend(batched.shape)
            request.raw_input_contents.append(np.ascontiguousarray(batched).tobytes())
        made.append(bytes(request.SerializeToString()))
    return made


def zeros(metadata: Any) -> dict[str, NDArray]:
    """Return one request's inputs of zeros, (1, ...) each, for a model of this metadata; free axes are 1 long.

    Raises `FlyweightError` for inputs of text.
    """
    made = {}
    for tensor in metadata.inputs:
        if tensor.datatype == "BYTES":
            raise FlyweightError(
                f"{metadata.name} takes text as {tensor.name!r}; the load generator sends numbers and images only"
            )
        shape = [max(1, size) for size in tensor.shape]
        made[tensor.name] = np.zeros((1, *shape[1:]) if tensor.shape[0] < 0 else (1, *shape), _type(tensor.datatype))
    return made


def _type(datatype: str) -> Any:
    return np.uint16 if datatype == "BF16" else triton_to_np_dtype(datatype)
