"""Requests for each server, ready to send, and a way to send one and read its answer: what is timed is what was checked."""

from __future__ import annotations

import functools
import json
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from peers.http1 import length
from peers.http1 import request as http_request
from pipeline.models.spec import ModelSpec

_SECONDS = 30.0


@dataclass(frozen=True)
class Wire:
    """How a server is asked."""

    address: str
    http: bool
    """HTTP/1.1; otherwise gRPC."""
    requests: Sequence[bytes]
    """One a row: whole HTTP requests, or serialised gRPC messages."""
    ask: Callable[[int], bytes]
    """Sends one of them and returns the bytes of the row's answer."""


def grpc_numbers(address: str, model: str, spec: ModelSpec, rows: NDArray) -> Wire:
    """Ask Triton over gRPC, with raw tensors."""
    requests = []
    for row in rows:
        message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[row.tobytes()])
        message.inputs.add(name=spec.inputs[0].name, datatype=np_to_triton_dtype(row.dtype), shape=[1, *row.shape])
        requests.append(message.SerializeToString())
    return Wire(address, False, requests, lambda index: _grpc(address, requests[index]))


def grpc_bytes(address: str, model: str, rows: Sequence[bytes]) -> Wire:
    """Ask over gRPC with each row as one element of type BYTES, which the protocol prefixes with its length."""
    requests = []
    for row in rows:
        message = service_pb2.ModelInferRequest(
            model_name=model, raw_input_contents=[struct.pack("<I", len(row)) + row]
        )
        message.inputs.add(name="rows", datatype="BYTES", shape=[1, 1])
        requests.append(message.SerializeToString())
    return Wire(address, False, requests, lambda index: _grpc(address, requests[index])[4:])


def http_bytes(address: str, requests: Sequence[bytes]) -> Wire:
    """Ask over HTTP/1.1; a body is an answer and nothing else."""
    return Wire(address, True, requests, lambda index: _http(address, requests[index]))


def http_triton(address: str, model: str, spec: ModelSpec, rows: NDArray) -> Wire:
    """Ask Triton over HTTP/1.1 with its extension for binary tensors."""
    given, taken = spec.outputs[0], spec.inputs[0]
    size = int(np.prod(given.shape)) * np.dtype(given.dtype).itemsize
    requests = []
    for row in rows:
        tensor = {
            "name": taken.name,
            "datatype": np_to_triton_dtype(row.dtype),
            "shape": [1, *row.shape],
            "parameters": {"binary_data_size": row.nbytes},
        }
        outputs = [{"name": given.name, "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        requests.append(http_request(f"/v2/models/{model}/infer", head + row.tobytes(), headers))
    return Wire(address, True, requests, lambda index: _http(address, requests[index])[-size:])


def _grpc(address: str, message: bytes) -> bytes:
    answer = _stub(address).ModelInfer(service_pb2.ModelInferRequest.FromString(message), timeout=_SECONDS)
    return bytes(answer.raw_output_contents[0])


@functools.cache
def _stub(address: str) -> service_pb2_grpc.GRPCInferenceServiceStub:
    """One connection that stays: Triton up to 24.12 can crash when a client goes away at the moment it is answered
    (https://github.com/triton-inference-server/server/issues/8034).
    """
    # It is asked while it starts.
    soon = [(f"grpc.{which}_reconnect_backoff_ms", 200) for which in ("initial", "min", "max")]
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address, soon))


def _http(address: str, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), _SECONDS) as connection:
        connection.sendall(request)
        data = b""
        while not (whole := length(data)) or len(data) < whole:
            part = connection.recv(65536)
            if not part:
                raise ConnectionError("the server closed the connection")
            data += part
    if not data.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(data[:300].decode(errors="replace"))
    return data.partition(b"\r\n\r\n")[2]
