"""ONNX Runtime on the CPU behind the calling convention of `pipeline.runners.runner`, without PyTorch, which serving does not need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from pipeline.errors import ModelError

ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    ValueError,
    TypeError,
)
"""What ONNX Runtime raises, at load and at work: its own kinds have no common base except `Exception`."""


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
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), session_options(threads), providers=["CPUExecutionProvider"]
            )
        except ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot load {file}: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """Named batched arrays, as the graph names and types them -> named batched arrays."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        """Let go of the session."""
        del self._session


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
