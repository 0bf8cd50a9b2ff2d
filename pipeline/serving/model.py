"""The Python backend's side of serving: one ONNX Runtime session answers each batch that Triton forms.

This file is copied into Triton's repository beside `model.onnx` and runs inside the server's Python stub, so it knows
the standard library, NumPy, ONNX Runtime and Triton, and nothing of Flyweight. What it needs to know comes from
`config.pbtxt` (inputs, outputs, the parameter `threads`) and from `manifest.json` beside it (the SHA-256 that
`model.onnx` must have).

A request that carries the parameter ``attest`` also gets the output `model_sha256`: the hash, as 32 bytes, of the very
file content that the session was made from. No other request pays for it.

Arrays cross by DLPack alone, never by Triton's own `as_numpy` and `Tensor(name, array)`: those are compiled against
NumPy 1 and read the wrong field of a NumPy 2 dtype as its size. Under NumPy 2 every input would be its first element
repeated, and every output empty, without an error. DLPack is also a little faster.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

ATTEST = "attest"
ATTESTED = "model_sha256"

_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]
_CONSUMED = ctypes.c_char_p(b"used_dltensor")


class TritonPythonModel:
    """One instance of a model: a session of its own in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.onnx` of this version. Whatever raises here refuses the load, and the old version serves on."""
        config = json.loads(args["model_config"])
        directory = Path(args["model_repository"]) / args["model_version"]
        data = (directory / "model.onnx").read_bytes()
        digest = hashlib.sha256(data)
        expected = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        if digest.hexdigest() != expected:
            raise ValueError(f"{directory}/model.onnx has SHA-256 {digest.hexdigest()}, manifest.json says {expected}")
        self.sha256 = np.frombuffer(digest.digest(), np.uint8)
        threads = int(config["parameters"]["threads"]["string_value"])
        self.session = onnxruntime.InferenceSession(data, _options(threads), providers=["CPUExecutionProvider"])
        self.batched = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"] if tensor["name"] != ATTESTED]
        gc.collect()
        gc.freeze()  # what lives until the end need not be walked again during requests

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of a formed batch, each with a response or an error of its own."""
        return self._together(requests) if self.batched else [self._alone(request) for request in requests]

    def _together(self, requests: list[Any]) -> list[Any]:
        """Answer a batch with one run. Where that fails its halves are tried, so that only the culprit gets the error."""
        try:
            feeds = self._feeds(requests)
            batch = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in feeds]
            answers = self.session.run(self.outputs, dict(zip(self.inputs, batch, strict=True)))
            self._check_rows(answers, len(batch[0]))
        except Exception as error:  # the backend must answer every request, whatever ONNX Runtime raises
            if len(requests) > 1:
                middle = len(requests) // 2
                return self._together(requests[:middle]) + self._together(requests[middle:])
            return [_failure(error)]
        responses, start = [], 0
        for request, part in zip(requests, feeds[0], strict=True):
            stop = start + len(part)
            tensors = [_give(name, whole[start:stop]) for name, whole in zip(self.outputs, answers, strict=True)]
            if ATTEST in request.parameters():
                tensors.append(_give(ATTESTED, np.tile(self.sha256, (stop - start, 1))))
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses

    def _alone(self, request: Any) -> Any:
        """Answer one request of a model without a batch axis."""
        try:
            feed = {name: part for name, (part,) in zip(self.inputs, self._feeds([request]), strict=True)}
            answers = self.session.run(self.outputs, feed)
        except Exception as error:  # as above
            return _failure(error)
        tensors = [_give(name, np.asarray(whole)) for name, whole in zip(self.outputs, answers, strict=True)]
        if ATTEST in request.parameters():
            tensors.append(_give(ATTESTED, self.sha256.reshape(1, -1).copy()))
        return pb_utils.InferenceResponse(tensors)

    def _feeds(self, requests: list[Any]) -> list[list[NDArray]]:
        """Return, for each input, the arrays of all requests; views of shared memory, not copies."""
        if len(self.inputs) == 1:  # no name to look for: 2 microseconds a request less
            return [[_take(request.inputs()[0]) for request in requests]]
        named = [{tensor.name(): _take(tensor) for tensor in request.inputs()} for request in requests]
        return [[tensors[name] for tensors in named] for name in self.inputs]

    def _check_rows(self, answers: list[NDArray], rows: int) -> None:
        """Raise `ValueError` unless every output has a row for each row that was asked: else neighbours would be mixed up."""
        for name, whole in zip(self.outputs, answers, strict=True):
            if len(whole) != rows:
                raise ValueError(
                    f"output {name!r} has {len(whole)} rows for a batch of {rows}: its first axis is no batch"
                )


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))


class _Capsule:
    """What `np.from_dlpack` asks of its argument. Triton's own tensor takes none of the keywords, which costs 6 us."""

    __slots__ = ("capsule",)

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU


def _take(tensor: Any) -> NDArray:
    """Return a Triton tensor as a read-only view."""
    return np.from_dlpack(_Capsule(tensor.to_dlpack()))  # type: ignore[arg-type]


def _give(name: str, array: NDArray) -> Any:
    """Return an array, contiguous and writable, as a Triton tensor that keeps it alive."""
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton marks the capsule as consumed with a name of its own, over which NumPy would print a traceback each time.
    _set_capsule_name(capsule, _CONSUMED)
    return tensor


def _options(threads: int) -> onnxruntime.SessionOptions:
    """Return session options: capped threads that sleep rather than spin, as other instances want the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
