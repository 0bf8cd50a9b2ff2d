"""The model as every HTTP peer serves it: the bytes of some rows in, the bytes of their answers out.

One session of one thread a worker, which does not spin: the same as Flyweight's own model.py has. Knows NumPy and ONNX
Runtime alone, as each peer runs it in an environment of its own.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime


class Rows:
    """The ONNX file that `PEER_MODEL` names."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        tensor = self._session.get_inputs()[0]
        self._name, self._shape = tensor.name, tensor.shape[1:]
        self._dtype = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[tensor.type]

    def array(self, rows: bytes) -> np.ndarray:
        """Return the answers (N, ...) to the bytes of N rows."""
        batch = np.frombuffer(rows, self._dtype).reshape(-1, *self._shape)
        return self._session.run(None, {self._name: batch})[0]

    def __call__(self, rows: bytes) -> bytes:
        """Return the answers' bytes to the bytes of N rows."""
        return self.array(rows).tobytes()
