"""The Python backend's side of serving: one ONNX Runtime session answers each batch that Triton forms.

This file is copied into Triton's repository beside `model.onnx` and runs inside the server's Python stub, so it knows
the standard library, NumPy, ONNX Runtime and Triton, and nothing of Flyweight. What it needs to know comes from
`config.pbtxt` (inputs, outputs, the parameter `threads`) and from `manifest.json` beside it (the SHA-256 that
`model.onnx` must have).

A request that carries the parameter ``attest`` also gets the output `model_sha256`: the hash of the very bytes that the
session was made from. No other request pays for it.
"""

from __future__ import annotations

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


class TritonPythonModel:
    """One instance of a model: a session of its own in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.onnx` of this version. Whatever raises here refuses the load, and the old version serves on."""
        config = json.loads(args["model_config"])
        directory = Path(args["model_repository"]) / args["model_version"]
        data = (directory / "model.onnx").read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        expected = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        if self.sha256 != expected:
            raise ValueError(f"{directory}/model.onnx has SHA-256 {self.sha256}, but manifest.json says {expected}")
        threads = int(config["parameters"]["threads"]["string_value"])
        self.session = onnxruntime.InferenceSession(data, _options(threads), providers=["CPUExecutionProvider"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"] if tensor["name"] != ATTESTED]
        gc.collect()
        gc.freeze()  # what lives until the end need not be walked again during requests

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of a formed batch, each with a response or an error of its own."""
        try:
            feeds = self._feeds(requests)
            batch = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in feeds]
            answers = self.session.run(self.outputs, dict(zip(self.inputs, batch, strict=True)))
        except Exception as error:  # the backend must answer every request, whatever ONNX Runtime raises
            if len(requests) > 1:
                return [response for request in requests for response in self.execute([request])]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))]
        responses, start = [], 0
        for request, part in zip(requests, feeds[0], strict=True):
            stop = start + len(part)
            tensors = [
                pb_utils.Tensor(name, whole[start:stop]) for name, whole in zip(self.outputs, answers, strict=True)
            ]
            if ATTEST in request.parameters():
                tensors.append(pb_utils.Tensor(ATTESTED, np.full((stop - start, 1), self.sha256, dtype=object)))
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses

    def _feeds(self, requests: list[Any]) -> list[list[NDArray]]:
        """Return, for each input, the arrays of all requests; views of shared memory, not copies."""
        if len(self.inputs) == 1:  # no name to look for: 2 microseconds a request less
            return [[request.inputs()[0].as_numpy() for request in requests]]
        named = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        return [[tensors[name] for tensors in named] for name in self.inputs]


def _options(threads: int) -> onnxruntime.SessionOptions:
    """Return session options: capped threads that sleep rather than spin, as other instances want the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
