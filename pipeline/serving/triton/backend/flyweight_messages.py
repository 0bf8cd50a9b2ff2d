"""Messages between a served model and whoever tries a candidate on its live requests.

A message is the length of a JSON text and of the bytes that follow it, then both; tensors are ``[name, type, shape]`` in
the text, their content in the bytes. Both ends use this file: the standard library and NumPy, nothing else.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTHS = struct.Struct("<IQ")


def send_message(connection: socket.socket, text: Mapping[str, Any], tensors: Mapping[str, NDArray]) -> None:
    """Send one message. Raises `OSError`."""
    listed = [[name, array.dtype.str, array.shape] for name, array in tensors.items()]
    head = json.dumps({**text, "tensors": listed}).encode()
    body = b"".join(array.tobytes() for array in tensors.values())
    connection.sendall(_LENGTHS.pack(len(head), len(body)) + head + body)


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Return the next message; its arrays are writable. Raises `OSError`, `EOFError` at the end."""
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
