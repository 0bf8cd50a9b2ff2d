"""The promoter's end of a test on live requests: what the champion's instances hand over, and what goes back to them.

The champion's `Sampler` connects to a socket beside the repository while there is one (`flyweight_messages` describes what
is exchanged). Nothing is written into the repository, and nothing outlives this process: when it ends, however it ends,
the connections close, and the champion answers all of its requests again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from pipeline.machine import places
from pipeline.serving.triton.backend.flyweight_messages import receive_message, send_message

Tensors: TypeAlias = Mapping[str, NDArray]
_ACCEPT_SECONDS = 0.1


def socket_path(model: str) -> Path:
    """Return where the instances of `model` look for somebody who wants their requests."""
    return places.serving() / "live" / f"{model}.sock"


@dataclass(frozen=True)
class Wanted:
    """What the champion's instances are asked for."""

    version: int
    """Of the champion; the instances of others are asked for nothing."""
    share: float
    answers: bool
    """Whether what comes back is the answer to the request."""
    maximum: int
    """Requests that an instance may have out at once."""
    patience: float
    """Seconds after which an instance answers itself what is still out."""


class Relay:
    """Listens while the block runs, and calls `work` with each request that an instance hands over, in threads.

    Args:
        model: the champion.
        wanted: what its instances are asked for.
        work: named arrays of one request in, what is to be answered out; nothing leaves it to the champion.
        threads: calls of `work` at once.
    """

    def __init__(self, model: str, wanted: Wanted, work: Callable[[Tensors], Tensors], threads: int) -> None:
        self.instances = 0
        """Of the champion, that have said they are there."""
        self.error: BaseException | None = None
        """What ended a call of `work` that should not have failed."""
        self._path, self._wanted, self._work = socket_path(model), wanted, work
        self._ended = threading.Event()
        self._handed: queue.SimpleQueue[tuple[_Instance, int, Tensors] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._answer, daemon=True) for _ in range(threads)]
        self._threads.append(threading.Thread(target=self._accept, daemon=True))
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Relay:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:  # a socket's path may have 107 bytes and no more
            self._listening.bind(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)
        self._listening.listen()
        self._listening.settimeout(_ACCEPT_SECONDS)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._path.unlink(missing_ok=True)
        for _thread in self._threads[:-1]:
            self._handed.put(None)
        for thread in self._threads:
            thread.join()
        self._listening.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has gone already
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listening.accept()
                connection.settimeout(None)
                self._connections.append(connection)
                threading.Thread(target=self._read, args=(_Instance(connection),), daemon=True).start()

    def _read(self, instance: _Instance) -> None:
        """Take what an instance hands over until it goes away."""
        with instance.connection, contextlib.suppress(OSError, EOFError):
            said, _ = receive_message(instance.connection)
            ours = int(said["version"]) == self._wanted.version
            instance.send(
                {
                    "share": self._wanted.share if ours else 0.0,
                    "answers": self._wanted.answers,
                    "most": self._wanted.maximum,
                    "patience": self._wanted.patience,
                }
            )
            self.instances += ours
            while True:
                said, tensors = receive_message(instance.connection)
                self._handed.put((instance, int(said["id"]), tensors))

    def _answer(self) -> None:
        while (handed := self._handed.get()) is not None and not self._ended.is_set():
            instance, number, feed = handed
            try:
                answer = self._work(feed)
            except Exception as error:  # for whoever waits for the end; the champion answers
                self.error, answer = error, {}
            with contextlib.suppress(OSError):  # it has gone, and answers itself
                instance.send({"id": number}, answer)


class _Instance:
    """An instance of the champion; several threads answer it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    def send(self, text: Mapping[str, Any], tensors: Tensors | None = None) -> None:
        with self._lock:
            send_message(self.connection, text, tensors or {})
