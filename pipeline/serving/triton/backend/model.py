"""The Python backend's side of serving: one ONNX Runtime session answers each batch that Triton forms.

This file is copied into Triton's repository beside `model.onnx` and runs inside the server's Python stub, so it knows
the standard library, NumPy, ONNX Runtime and Triton, and nothing of Flyweight. What it needs to know comes from
`config.pbtxt` (inputs, outputs, the parameters `threads`, `max_queue_size` and `queue_timeout_ms`) and from
`manifest.json` beside it (the SHA-256 that `model.onnx` must have).

A request that carries the parameter ``attest`` also gets the output `model_sha256`: the hash, as 32 bytes, of the very
file content that the session was made from. No other request pays for it.

Arrays cross by DLPack alone, never by Triton's own `as_numpy` and `Tensor(name, array)`: those are compiled against
NumPy 1 and read the wrong field of a NumPy 2 dtype as its size. Under NumPy 2 every input would be its first element
repeated, and every output empty, without an error. DLPack is also a little faster.

While a candidate is tried on live requests, `Sampler` hands some of them to whoever tries it (`live.py`).
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import http.client
import json
import os
import queue
import random
import re
import select
import socket
import struct
import threading
import time
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
        return pb_utils.InferenceResponse([_give(name, array) for name, array in zip(self.outputs, whole, strict=True)])

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
        """Answer one request of a model without a batch axis. What has no axis at all has one of length 1 in Triton."""
        try:
            parts = zip(self.inputs, self._feeds([request]), strict=True)
            feed = {name: part.reshape(()) if name in self.bare else part for name, (part,) in parts}
            answers = self.session.run(self.outputs, feed)
        except Exception as error:  # as above
            return _failure(error)
        tensors = [_give(name, np.atleast_1d(whole)) for name, whole in zip(self.outputs, answers, strict=True)]
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


class Gate:
    """Refuses requests at the head of a queue that has grown too long, without running the model for them.

    Triton 2.51's own limit makes its batcher stall (docs/decisions/triton-queue.md), and its Python backend is not told
    how many requests wait. Its metrics say so. They are read by a thread of this class, and only while this copy of the
    model rests less than half of its time: a server with time to spare pays nothing.

    Args:
        model, version: which of the metrics to look for.
        most: requests that may wait; 0 is no limit.
        longest: seconds that a request may wait on average; 0 is no limit.
        copies: of the model, which share what is to be refused.
    """

    _POLL_SECONDS = 0.025

    def __init__(self, model: str, version: str, most: int, longest: float, copies: int) -> None:
        self.most, self.longest, self.copies = most, longest, copies
        labels = rb'\{model="%s",version="%s"\} ([0-9.e+]+)' % (model.encode(), version.encode())
        self._waiting = re.compile(rb"nv_inference_pending_request_count" + labels)
        self._queued_us = re.compile(rb"nv_inference_queue_duration_us" + labels)
        self._succeeded = re.compile(rb"nv_inference_request_success" + labels)
        self._seen = (0.0, 0.0)
        self._left = 0
        self._answered = self._since = time.monotonic()
        self._rested = 0.0
        self._look = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def refuses(self, requests: int) -> bool:
        """Return whether the next `requests` are to be refused."""
        now = time.monotonic()
        rested = now - self._answered
        if rested > self._POLL_SECONDS:  # nobody waited
            self._look.clear()
            self._left = 0
        self._rested += rested
        if now - self._since > self._POLL_SECONDS:
            if self._rested < (now - self._since) / 2:
                self._look.set()
            else:
                self._look.clear()
            self._since, self._rested = now, 0.0
        if self._left <= 0:
            return False
        self._left -= requests
        return True

    def refusal(self) -> Any:
        """Return the answer to a refused request."""
        limit = f"{self.most} requests" if self.most else f"{self.longest * 1e3:g} ms"
        error = pb_utils.TritonError(
            f"the model is overloaded: more than {limit} wait", pb_utils.TritonError.UNAVAILABLE
        )
        return pb_utils.InferenceResponse(error=error)

    def answered(self) -> None:
        """Note that a batch has been answered now."""
        self._answered = time.monotonic()

    def _watch(self) -> None:
        port = int(os.environ.get("FLYWEIGHT_TRITON_METRICS_PORT", "8002"))
        while True:
            self._look.wait()
            try:
                found = _metrics(port)
            except OSError as error:
                pb_utils.Logger.log_warn(f"queue limits have no effect: no metrics at 127.0.0.1:{port} ({error})")
                time.sleep(1)
                continue
            self._left = self._excess(found)
            if not _number(self._waiting, found):
                self._look.clear()
            time.sleep(self._POLL_SECONDS)  # also while a long batch is run: what comes meanwhile counts

    def _excess(self, metrics: bytes) -> int:
        """Return how many requests this copy is to refuse by what `metrics` say."""
        waiting = int(_number(self._waiting, metrics))
        queued, succeeded = _number(self._queued_us, metrics) / 1e6, _number(self._succeeded, metrics)
        before, self._seen = self._seen, (queued, succeeded)
        excess = max(0, waiting - self.most) if self.most else 0
        answered = succeeded - before[1]
        if self.longest and before[1] and answered > 0:
            mean = (queued - before[0]) / answered
            excess = max(excess, int(waiting * (1 - self.longest / mean)) if mean > self.longest else 0)
        return -(-excess // self.copies)


class Sampler:
    """Hands a share of the live requests to a process that tries a candidate on them, and never depends on it.

    That process listens on a socket beside the repository and says what share it wants, and whether it answers (a
    canary) or only looks (a shadow). What it has been given as a canary and does not answer in time, whatever the reason,
    is answered by this model as if nothing had been. An overdue request counts as out until it is heard of again, so
    somebody who hangs delays no more than may be out at once. While nobody listens, a thread looks for the socket once a
    second, and a batch pays for one comparison.

    A message is the length of a JSON text and of the bytes that follow it, then both; tensors are
    ``[name, type, shape]`` in the text, their content in the bytes.

    Args:
        directory: where the socket would be, named as the model.
        model, version: who this is.
        answer: what this model says to the inputs of one request.
    """

    _LOOK_SECONDS = 1.0

    def __init__(self, directory: Path, model: str, version: str, answer: Any) -> None:
        self.share = 0.0
        self._directory, self._name, self._version, self._answer = directory, f"{model}.sock", version, answer
        self._lock = threading.Lock()
        self._out: dict[int, tuple[Any, dict[str, NDArray], float]] = {}
        self._number = 0
        self._answers = False
        self._patience = 0.0
        self._most = 0
        self._unsent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._look, daemon=True).start()

    def wants(self) -> bool:
        """Return whether the next request is to be handed over: by chance, and never while too many are out."""
        return random.random() < self.share and len(self._out) < self._most  # noqa: S311

    def takes(self, request: Any, feed: dict[str, NDArray]) -> bool:
        """Hand a request over; return whether it will be answered from here."""
        copied = {name: np.array(part) for name, part in feed.items()}  # Triton takes back what it gave
        with self._lock:
            if not self.share:  # it has ended meanwhile
                return False
            sender = request.get_response_sender() if self._answers else None
            self._number += 1
            self._out[self._number] = (sender, copied, time.monotonic() + self._patience)
        self._unsent.put((self._number, copied))
        return sender is not None

    def _look(self) -> None:
        while True:
            time.sleep(self._LOOK_SECONDS)
            if not (self._directory / self._name).exists():
                continue
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    self._serve(connection)
                except EOFError:
                    pb_utils.Logger.log_info("whoever wanted live requests has gone")
                except Exception as error:  # whatever it sent, this model has to answer
                    pb_utils.Logger.log_warn(
                        f"live requests are no longer handed over: {type(error).__name__}: {error}"
                    )
                finally:
                    self._end()

    def _serve(self, connection: socket.socket) -> None:
        """Hand requests over until the other side ends it or is late."""
        directory = os.open(self._directory, os.O_RDONLY)
        try:  # a socket's path may have 107 bytes and no more
            connection.connect(f"/proc/self/fd/{directory}/{self._name}")
        except ConnectionRefusedError:  # left by one that was killed
            return
        finally:
            os.close(directory)
        connection.settimeout(5.0)
        send_message(connection, {"version": self._version}, {})
        wanted, _ = receive_message(connection)
        self._answers, self._patience = bool(wanted["answers"]), float(wanted["patience"])
        self._most = int(wanted["most"])
        self._unsent = queue.SimpleQueue()
        threading.Thread(target=self._write, args=(connection, self._unsent), daemon=True).start()
        self.share = float(wanted["share"])
        while True:
            if select.select([connection], [], [], 0.05)[0]:
                said, tensors = receive_message(connection)
                self._done(int(said["id"]), tensors)
            self._answer_overdue()

    def _write(self, connection: socket.socket, unsent: queue.SimpleQueue[Any]) -> None:
        try:
            while (item := unsent.get()) is not None:
                send_message(connection, {"id": item[0]}, item[1])
        except OSError:  # the reader sees it too
            return

    def _done(self, number: int, tensors: dict[str, NDArray]) -> None:
        sender, feed, _ = self._out[number]
        if sender is not None:
            self._respond(sender, feed, tensors)
        with self._lock:
            del self._out[number]

    def _answer_overdue(self) -> None:
        now = time.monotonic()
        for number, (sender, feed, due) in list(self._out.items()):
            if sender is not None and due < now:
                self._respond(sender, feed, {})
                self._out[number] = (None, {}, due)

    def _end(self) -> None:
        """Take back all that is out, and answer it."""
        with self._lock:
            self.share = 0.0
            out, self._out = self._out, {}
        self._unsent.put(None)
        for sender, feed, _ in out.values():
            if sender is not None:
                try:
                    self._respond(sender, feed, {})
                except Exception as error:  # one that was answered when the connection broke must not cost the others
                    pb_utils.Logger.log_warn(f"a request that had been handed over: {type(error).__name__}: {error}")

    def _respond(self, sender: Any, feed: dict[str, NDArray], tensors: dict[str, NDArray]) -> None:
        """Answer with `tensors`; with what this model says where there are none."""
        given = [_give(name, array) for name, array in tensors.items()]
        response = pb_utils.InferenceResponse(given) if given else self._answer(feed)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


_LENGTHS = struct.Struct("<IQ")


def send_message(connection: socket.socket, text: dict[str, Any], tensors: dict[str, NDArray]) -> None:
    """Send one message (`Sampler`). Raises `OSError`."""
    listed = [[name, array.dtype.str, array.shape] for name, array in tensors.items()]
    head = json.dumps({**text, "tensors": listed}).encode()
    body = b"".join(array.tobytes() for array in tensors.values())
    connection.sendall(_LENGTHS.pack(len(head), len(body)) + head + body)


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Return the next message (`Sampler`); its arrays are writable. Raises `OSError`, `EOFError` at the end."""
    head, body = _LENGTHS.unpack(_receive(connection, _LENGTHS.size))
    text = json.loads(_receive(connection, head))
    content, start, tensors = _receive(connection, body), 0, {}
    for name, dtype, shape in text.pop("tensors"):
        count = int(np.prod(shape))
        tensors[name] = np.frombuffer(content, dtype, count, start).reshape(shape)
        start += count * np.dtype(dtype).itemsize
    return text, tensors


def _receive(connection: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view, got = memoryview(found), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            raise EOFError("the other side has ended it")
        got += count
    return found


def _metrics(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    finally:
        connection.close()


def _number(pattern: re.Pattern[bytes], metrics: bytes) -> float:
    found = pattern.search(metrics)
    return float(found[1]) if found else 0.0


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
