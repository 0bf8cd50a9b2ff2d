"""The limits of a model's queue: refusing requests that would wait too long, by what Triton's metrics say."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from typing import Any

import triton_python_backend_utils as pb_utils


class Gate:
    """Refuses requests at the head of a queue that has grown too long, without running the model for them.

    Triton 2.51's own limit makes its batcher stall (docs/decisions/triton-queue.md), and its Python backend does not know
    how many requests wait. Its metrics say so. They are read by a thread of this class, and only while this instance of the
    model rests less than half of its time: a server with time to spare pays nothing.

    Args:
        model, version: which of the metrics to look for.
        maximum: requests that may wait; 0 is no limit.
        longest: seconds that a request may wait on average; 0 is no limit.
        instances: of the model, which share what is to be refused.
    """

    _POLL_SECONDS = 0.025

    def __init__(self, model: str, version: str, maximum: int, longest: float, instances: int) -> None:
        self.maximum, self.longest, self.instances = maximum, longest, instances
        labels = rb'\{model="%s",version="%s"\} ([0-9.e+]+)' % (model.encode(), version.encode())
        self._waiting = re.compile(rb"nv_inference_pending_request_count" + labels)
        self._queued_us = re.compile(rb"nv_inference_queue_duration_us" + labels)
        self._succeeded = re.compile(rb"nv_inference_request_success" + labels)
        self._seen = (0.0, 0.0)
        self._left = self._taken = 0
        self._counts = threading.Lock()  # guards the two above
        self._answered = self._since = time.monotonic()
        self._rested = 0.0
        self._look = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def refuses(self, requests: int) -> bool:
        """Return whether the next `requests` are to be refused."""
        now = time.monotonic()
        rested = now - self._answered
        calm = rested > self._POLL_SECONDS  # nobody waited
        if calm:
            self._look.clear()
        self._rested += rested
        if now - self._since > self._POLL_SECONDS:
            if self._rested < (now - self._since) / 2:
                self._look.set()
            else:
                self._look.clear()
            self._since, self._rested = now, 0.0
        with self._counts:
            self._taken += requests
            if calm or self._left <= 0:
                self._left = 0
                return False
            self._left -= requests
            return True

    def refusal(self) -> Any:
        """Return the answer to a refused request."""
        limit = f"{self.maximum} requests" if self.maximum else f"{self.longest * 1e3:g} ms"
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
                self._measure(port)
            except (OSError, http.client.HTTPException) as error:
                pb_utils.Logger.log_warn(f"queue limits have no effect: no metrics at 127.0.0.1:{port} ({error})")
                time.sleep(1)
            time.sleep(self._POLL_SECONDS)  # also while a long batch is run: what comes meanwhile counts

    def _measure(self, port: int) -> None:
        taken = self._taken
        found = _metrics(port)
        excess = self._excess(found)
        with self._counts:  # what left the queue while its length was read must not be refused a second time
            self._left = excess - (self._taken - taken)
        if not _number(self._waiting, found):
            self._look.clear()

    def _excess(self, metrics: bytes) -> int:
        """Return how many requests this instance is to refuse by what `metrics` say."""
        waiting = int(_number(self._waiting, metrics))
        queued, succeeded = _number(self._queued_us, metrics) / 1e6, _number(self._succeeded, metrics)
        before, self._seen = self._seen, (queued, succeeded)
        excess = max(0, waiting - self.maximum) if self.maximum else 0
        answered = succeeded - before[1]
        if self.longest and before[1] and answered > 0:
            mean = (queued - before[0]) / answered
            excess = max(excess, int(waiting * (1 - self.longest / mean)) if mean > self.longest else 0)
        return -(-excess // self.instances)


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
