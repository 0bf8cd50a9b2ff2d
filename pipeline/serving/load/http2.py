"""One gRPC method over one HTTP/2 connection, with almost no work for each call. The standard library alone.

A load generator on the server's own machine takes away the processor that it wants to measure: a call through the grpc
package costs about 110 microseconds of Python, one through this file about 10. It knows as much of HTTP/2 (RFC 9113),
HPACK (RFC 7541) and gRPC over HTTP/2 as unary calls of pre-serialised messages need: requests are the same headers each
time, the peer is asked to keep no header table, so that every answer's status stands in plain bytes, and what the answers
hold is counted but not read. Flow control is honoured in both directions.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65535
_FRAME_SIZE = 16384
STATUS = [
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
]
"""Names of gRPC's status codes, by number."""


class Connection:
    """Calls of one unary gRPC method, many in flight at once.

    Args:
        address: ``host:port``.
        method: full name such as ``/inference.GRPCInferenceService/ModelInfer``.
        timeout: longest silence in seconds before `receive` raises `TimeoutError`.
        tls: files for an encrypted connection, named as tritonclient names them (`tls.client_options`); none for none.
    """

    def __init__(self, address: str, method: str, timeout: float, tls: Mapping[str, Any] | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pending: Callable[[], int] = lambda: 0
        if tls:
            self._socket = encrypted = _encrypted(self._socket, host, tls)
            self._pending = encrypted.pending
        block = (b"\x83\x87" if tls else b"\x83\x86") + b"".join(  # :method POST, :scheme https or http
            _literal(name, value)
            for name, value in (
                (":path", method),
                (":authority", address),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            )
        )
        self._headers_before = struct.pack(">I", len(block))[1:] + bytes([_HEADERS, _END_HEADERS])
        self._headers_after = block
        self._stream = -1
        self._queue: deque[tuple[int, bytes]] = deque()
        self._sent = 0  # bytes of the queue's first message that are on their way
        self._window = self._initial_window = self._stream_window = _DEFAULT_WINDOW
        self._unacknowledged = 0
        self._rest = b""
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        grant = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, grant))

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; calls in flight are lost."""
        self._socket.close()

    def call(self, message: bytes) -> int:
        """Queue one call of a `message` made by `prefixed` and return its stream's number; `flush` sends it."""
        self._stream += 2
        self._queue.append((self._stream, message))
        return self._stream

    def flush(self) -> None:
        """Send what is queued, as far as the peer's windows allow; `receive` sends the rest when they open."""
        out: list[bytes] = []
        while self._queue:
            stream, message = self._queue[0]
            if self._sent == 0:
                if self._window <= 0:
                    break
                out += (self._headers_before, struct.pack(">I", stream), self._headers_after)
                self._stream_window = self._initial_window
            size = min(len(message) - self._sent, self._window, self._stream_window, _FRAME_SIZE)
            if size <= 0:
                break
            end = self._sent + size == len(message)
            part = message if size == len(message) else message[self._sent : self._sent + size]
            out += (
                struct.pack(">I", size)[1:],
                bytes([_DATA, _END_STREAM if end else 0]),
                struct.pack(">I", stream),
                part,
            )
            self._window -= size
            self._stream_window -= size
            self._sent += size
            if end:
                self._queue.popleft()
                self._sent = 0
        if out:
            self._socket.sendall(b"".join(out))

    def receive(self) -> list[tuple[int, int]]:
        """Wait for bytes and return (stream, gRPC status) of each call that they end. Raises `OSError`."""
        got = self._socket.recv(1 << 18)
        if not got:
            raise ConnectionError("the server closed the connection")
        while waiting := self._pending():  # decrypted already, so that no selector would tell of it
            got += self._socket.recv(waiting)
        data = self._rest + got if self._rest else got
        position, size = 0, len(data)
        ended: list[tuple[int, int]] = []
        while size - position >= 9:
            length = (data[position] << 16) | (data[position + 1] << 8) | data[position + 2]
            body = position + 9
            if size - body < length:
                break
            kind, flags = data[position + 3], data[position + 4]
            if kind == _DATA:
                self._unacknowledged += length
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    stream = int.from_bytes(data[position + 5 : body], "big")
                    ended.append((stream, _status(data[body : body + length])))
            else:
                stream = int.from_bytes(data[position + 5 : body], "big")
                ended += self._control(kind, flags, stream, data[body : body + length])
            position = body + length
        self._rest = data[position:]
        if self._unacknowledged > _LARGEST_WINDOW // 2:
            self._socket.sendall(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged)))
            self._unacknowledged = 0
        if self._queue:
            self.flush()
        return ended

    def _control(self, kind: int, flags: int, stream: int, body: bytes) -> list[tuple[int, int]]:
        """Obey a frame that is neither data nor headers; return the call that it ends, if it ends one."""
        if kind == _WINDOW_UPDATE:
            grant = int.from_bytes(body, "big")
            if stream == 0:
                self._window += grant
            elif self._queue and self._queue[0][0] == stream:
                self._stream_window += grant
        elif kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", body):
                if name == _INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._initial_window
                    self._initial_window = value
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, body))
        elif kind == _RST_STREAM:
            if self._queue and self._queue[0][0] == stream:
                self._queue.popleft()
                self._sent = 0
            return [(stream, STATUS.index("UNAVAILABLE"))]
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server is going away: {body[8:].decode(errors='replace') or 'no reason given'}")
        elif kind == _CONTINUATION:
            raise ConnectionError("the server answers with headers too long for this client")
        return []


def prefixed(message: bytes) -> bytes:
    """Return a serialised message as gRPC sends it: uncompressed, its length before it."""
    return b"\x00" + struct.pack(">I", len(message)) + message


def _encrypted(plain: socket.socket, host: str, tls: Mapping[str, Any]) -> ssl.SSLSocket:
    """Return `plain` with TLS around it, the server's certificate verified."""
    import ssl  # takes 10 ms that a plain connection need not wait

    context = ssl.create_default_context(cafile=tls["root_certificates"])
    context.set_alpn_protocols(["h2"])
    if "certificate_chain" in tls:
        context.load_cert_chain(tls["certificate_chain"], tls["private_key"])
    return context.wrap_socket(plain, server_hostname=host)


def _literal(name: str, value: str) -> bytes:
    """Return a header as HPACK's literal without indexing and without Huffman coding."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def _status(block: bytes) -> int:
    """Return the gRPC status in a block of trailers; UNKNOWN where it has none or is Huffman coded."""
    _, found, after = block.partition(b"grpc-status")
    if not found or after[0] & 0x80 or not after[1 : 1 + after[0]].isdigit():
        return STATUS.index("UNKNOWN")
    return int(after[1 : 1 + after[0]])
