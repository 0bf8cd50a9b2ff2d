"""A share of the live requests for whoever tries a candidate on them (`promotion/canary.py`)."""

from __future__ import annotations

import os
import queue
import random
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from flyweight_arrays import give
from flyweight_messages import receive_message, send_message
from numpy.typing import NDArray


class Sampler:
    """Hands a share of the live requests to a process that tries a candidate on them, and never depends on it.

    That process listens on a socket beside the repository and says what share it wants, and whether it answers (a
    canary) or only looks (a shadow). What it has been given as a canary and does not answer in time, whatever the reason,
    is answered by this model as if nothing had been. An overdue request counts as out until it is heard of again, so
    somebody who hangs delays no more than may be out at once. While nobody listens, a thread looks for the socket once a
    second, and a batch pays for one comparison.

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
        self._maximum = 0
        self._unsent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._look, daemon=True).start()

    def wants(self) -> bool:
        """Return whether the next request is to be handed over: by chance, and never while too many are out."""
        return random.random() < self.share and len(self._out) < self._maximum  # noqa: S311

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
        self._maximum = int(wanted["most"])
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
        given = [give(name, array) for name, array in tensors.items()]
        response = pb_utils.InferenceResponse(given) if given else self._answer(feed)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
