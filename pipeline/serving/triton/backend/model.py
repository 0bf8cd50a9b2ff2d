"""The Python backend's side of serving: one ONNX Runtime session answers each batch that Triton forms.

This file and the `flyweight_*.py` beside it are copied into Triton's repository beside `model.onnx` and run inside the
server's Python stub, so they know the standard library, NumPy, ONNX Runtime and Triton, and nothing else of Flyweight.
What they need to know comes from `config.pbtxt` (inputs, outputs, the parameters `threads`, `max_queue_size` and
`queue_timeout_ms`) and from `manifest.json` beside them (the SHA-256 that `model.onnx` must have).

A request that carries the parameter ``attest`` also gets the output `model_sha256`: the hash, as 32 bytes, of the very
file content that the session was made from. No other request pays for it.

While a candidate is tried on live requests, a `Sampler` hands some of them to whoever tries it.
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
from flyweight_arrays import give, take
from flyweight_gate import Gate
from flyweight_live import Sampler
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
        digest = hashlib.sha256(data)
        expected = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        if digest.hexdigest() != expected:
            raise ValueError(f"{directory}/model.onnx has SHA-256 {digest.hexdigest()}, manifest.json says {expected}")
        self.sha256 = np.frombuffer(digest.digest(), np.uint8)
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        threads = int(parameters["threads"])
        self.session = onnxruntime.InferenceSession(data, _options(threads), providers=["CPUExecutionProvider"])
        self.batched = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"] if tensor["name"] != ATTESTED]
        self.bare = {tensor.name for tensor in self.session.get_inputs() if not tensor.shape}
        self.gate: Gate | None = None
        if "max_queue_size" in parameters or "queue_timeout_ms" in parameters:
            self.gate = Gate(
                args["model_name"],
                args["model_version"],
                int(parameters.get("max_queue_size", 0)),
                float(parameters.get("queue_timeout_ms", 0)) / 1e3,
                sum(group["count"] for group in config["instance_group"]),
            )
        repository = Path(args["model_repository"]).parent
        self.sampler = Sampler(
            repository.parent / f".{repository.name}" / "live",
            args["model_name"],
            args["model_version"],
            self.answer,
        )
        gc.collect()
        gc.freeze()  # what lives until the end need not be walked again during requests

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of a formed batch, each with a response or an error of its own."""
        if self.gate is None:
            return self._answers(requests)
        refused = self.gate.refuses(len(requests))
        answers = [self.gate.refusal() for _ in requests] if refused else self._answers(requests)
        self.gate.answered()
        return answers

    def _answers(self, requests: list[Any]) -> list[Any]:
        if self.sampler.share:
            return self._sampled(requests)
        return self._together(requests) if self.batched else [self._alone(request) for request in requests]

    def _sampled(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of which the sampler may take some: None stands for what is answered later."""
        taken = [
            self.sampler.wants()
            and ATTEST not in request.parameters()
            and self.sampler.takes(request, self._feed(request))
            for request in requests
        ]
        left = [request for request, gone in zip(requests, taken, strict=True) if not gone]
        if not left:
            return [None] * len(requests)
        answers = iter(self._together(left) if self.batched else [self._alone(request) for request in left])
        return [None if gone else next(answers) for gone in taken]

    def _feed(self, request: Any) -> dict[str, NDArray]:
        return {name: part for name, (part,) in zip(self.inputs, self._feeds([request]), strict=True)}

    def answer(self, feed: dict[str, NDArray]) -> Any:
        """Answer the inputs of one request, whenever that is."""
        try:
            if not self.batched:
                feed = {name: part.reshape(()) if name in self.bare else part for name, part in feed.items()}
            answers = self.session.run(self.outputs, feed)
            if self.batched:
                self._check_rows(answers, len(next(iter(feed.values()))))
        except Exception as error:  # as in `_together`
            return _failure(error)
        whole = answers if self.batched else map(np.atleast_1d, answers)
        return pb_utils.InferenceResponse([give(name, array) for name, array in zip(self.outputs, whole, strict=True)])

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
            tensors = [give(name, whole[start:stop]) for name, whole in zip(self.outputs, answers, strict=True)]
            if ATTEST in request.parameters():
                tensors.append(give(ATTESTED, np.tile(self.sha256, (stop - start, 1))))
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses

    def _alone(self, request: Any) -> Any:
        """Answer one request of a model without a batch axis. What has no axis at all has one of length 1 in Triton."""
        try:
            parts = zip(self.inputs, self._feeds([request]), strict=True)
            feed = {name: part.reshape(()) if name in self.bare else part for name, (part,) in parts}
            answers = self.session.run(self.outputs, feed)
        except Exception as error:  # as above
            return _failure(error)
        tensors = [give(name, np.atleast_1d(whole)) for name, whole in zip(self.outputs, answers, strict=True)]
        if ATTEST in request.parameters():
            tensors.append(give(ATTESTED, self.sha256.reshape(1, -1).copy()))
        return pb_utils.InferenceResponse(tensors)

    def _feeds(self, requests: list[Any]) -> list[list[NDArray]]:
        """Return, for each input, the arrays of all requests; views of shared memory, not copies."""
        if len(self.inputs) == 1:  # no name to look for: 2 microseconds less per request
            return [[take(request.inputs()[0]) for request in requests]]
        named = [{tensor.name(): take(tensor) for tensor in request.inputs()} for request in requests]
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


def _options(threads: int) -> onnxruntime.SessionOptions:
    """Return session options: capped threads that sleep rather than spin, as other instances want the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
