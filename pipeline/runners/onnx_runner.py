"""ONNX Runtime on the CPU behind the calling convention of all runners, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from pipeline.errors import ModelError

_KINDS = (kind for kind in vars(onnxruntime_pybind11_state).values() if isinstance(kind, type))
ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in _KINDS if issubclass(kind, Exception)), RuntimeError, ValueError, TypeError
)  # fmt: skip
"""All that ONNX Runtime raises: its own errors have no common base except Exception."""


class OnnxRunner:
    """An ONNX file in ONNX Runtime, on the CPU.

    Args:
        file: the model.
        threads: threads inside one operator. They sleep rather than spin while they wait, as others want the cores.

    Raises:
        ModelError: the file is missing or is no model that ONNX Runtime takes.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        self.name = f"onnxruntime:{file.parent.name}"
        self._session = open_session(file, session_options(threads))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """Named batched arrays, as the graph names and types them -> named batched arrays. Raises `ModelError`."""
        try:
            found = self._session.run(self._outputs, dict(inputs))
        except ERRORS as error:
            shapes = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in inputs.items())
            raise ModelError(f"{self.name} refuses {shapes}: {error}") from error
        return dict(zip(self._outputs, found, strict=True))

    def close(self) -> None:
        """Let go of the session."""
        del self._session


def open_session(
    file: Path, options: onnxruntime.SessionOptions | None = None, **arguments: Any
) -> onnxruntime.InferenceSession:
    """Load `file` into ONNX Runtime on the CPU; `arguments` are the session's. Raises `ModelError`."""
    try:
        return onnxruntime.InferenceSession(
            str(file), options or session_options(), providers=["CPUExecutionProvider"], **arguments
        )
    except ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot load {file}: {error}") from error


def session_options(threads: int = 1, **settings: Any) -> onnxruntime.SessionOptions:
    """Return the options under which every model of ours runs on a CPU; `settings` are further attributes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in settings.items():
        setattr(options, name, value)
    return options
