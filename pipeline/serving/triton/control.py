"""What changing a served model asks of a server, and the few questions that are put together from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from numpy.typing import NDArray

from pipeline.serving.triton.calls import Answer, Served
from pipeline.serving.triton.errors import TritonError

READY = "READY"
_BUSY = {"LOADING", "UNLOADING"}
_POLL_SECONDS = 0.02


class Control(Protocol):
    """What promotion asks of a server; `Client` is one."""

    def index(self) -> dict[str, dict[int, str]]:
        """Return model -> version -> state."""

    def load(self, model: str, timeout: float) -> None:
        """Load or reload a model. Raises `TritonError`."""

    def unload(self, model: str) -> None:
        """Stop serving a model. Raises `TritonError`."""

    def infer(self, model: str, inputs: Mapping[str, NDArray], version: str = "", *, attest: bool = False) -> Answer:
        """Return an answer. Raises `TritonError`."""

    def served(self, model: str) -> dict[int, Served]:
        """Return what each loaded version of `model` has answered. Raises `TritonError`."""


def is_reachable(control: Control) -> bool:
    """Return whether the server answers at all."""
    try:
        control.index()
    except TritonError:
        return False
    return True


def states(control: Control, model: str) -> dict[int, str]:
    """Return version -> state of `model`; nothing for one that Triton does not know."""
    return control.index().get(model, {})


def busy(control: Control, model: str, timeout: float) -> dict[int, str]:
    """Wait until no version of `model` is on its way in or out; return those that still are after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while moving := {version: state for version, state in states(control, model).items() if state in _BUSY}:
        if time.monotonic() > deadline:
            return moving
        time.sleep(_POLL_SECONDS)
    return {}


def wait_until_gone(control: Control, model: str, timeout: float) -> None:
    """Wait until no version of `model` is in use: Triton returns from an unload before it has ended.

    Raises `TritonError` where it takes longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while any(state not in {"", "UNAVAILABLE"} for state in states(control, model).values()):
        if time.monotonic() > deadline:
            raise TritonError(f"{model} was not unloaded within {timeout:g} s", "DEADLINE_EXCEEDED")
        time.sleep(_POLL_SECONDS)
