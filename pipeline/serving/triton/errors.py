"""What Triton refuses or fails to do, as one kind of error, and which of it may be asked again."""

from __future__ import annotations

import re

from tritonclient.utils import InferenceServerException

_UNSENT = re.compile(r"failed to connect|connection refused|name resolution|DNS", re.IGNORECASE)
"""What gRPC says where it had no connection, so that nothing was sent."""
LOST = re.compile(
    r"socket closed|connection (reset|aborted)|broken pipe|goaway|stream removed|ping timeout", re.IGNORECASE
)
"""What gRPC says where the connection ended under way: the server may have worked on it, or not."""


class TritonError(Exception):
    """Triton did not do what was asked.

    Args:
        message: what was asked, of whom, and what came back.
        status: gRPC's name of the status, such as ``NOT_FOUND``.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


def translated(what: str, url: str, error: InferenceServerException) -> TritonError:
    """Return what tritonclient raised over `what`, asked of the server at `url`."""
    status = str(error.status() or "UNKNOWN").removeprefix("StatusCode.")
    return TritonError(f"{what}: Triton at {url} says {status}: {error.message()}", status)


def repeatable(error: InferenceServerException, repeat: re.Pattern[str] | None) -> bool:
    """Return whether a call that failed so may be made again: nothing was sent, or what failed matches `repeat`."""
    if not str(error.status()).endswith("UNAVAILABLE"):
        return False
    said = str(error.message())
    return bool(_UNSENT.search(said) or (repeat is not None and repeat.search(said)))
