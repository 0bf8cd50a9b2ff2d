"""The ceiling of Triton's Python backend: takes the tensors of the model, answers tensors of its shape, computes nothing.

It stands in the place of Flyweight's model.py, with the same config: the same inputs and outputs, copies, batches and
queue. Each request's input is taken (a view of shared memory), and it gets rows of one array of zeros.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

_TYPES = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_FP64": np.float64, "TYPE_INT64": np.int64}
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
_CONSUMED = ctypes.c_char_p(b"used_dltensor")


class _Capsule:
    """What `np.from_dlpack` asks of its argument."""

    __slots__ = ("capsule",)

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class TritonPythonModel:
    """One copy, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the answers: as many rows of zeros as a batch may have."""
        config = json.loads(args["model_config"])
        output = config["output"][0]
        shape = [config["max_batch_size"], *(int(length) for length in output["dims"])]
        self.name, self.zeros = output["name"], np.zeros(shape, _TYPES[output["data_type"]])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of a batch with as many rows as it has."""
        responses, start = [], 0
        for request in requests:
            rows = len(taken(request))
            responses.append(given(self.name, self.zeros[start : start + rows]))
            start += rows
        return responses


def taken(request: Any) -> NDArray:
    """Return the request's input as a view."""
    return np.from_dlpack(_Capsule(request.inputs()[0].to_dlpack()))  # type: ignore[arg-type]


def given(name: str, rows: NDArray) -> Any:
    """Return the response with `rows`."""
    capsule = rows.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _rename(capsule, _CONSUMED)  # else NumPy prints a traceback when it lets go of it
    return pb_utils.InferenceResponse([tensor])
