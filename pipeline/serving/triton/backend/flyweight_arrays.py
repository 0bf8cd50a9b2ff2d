"""Arrays to and from Triton's Python backend, by DLPack alone.

Triton's own `as_numpy` and `Tensor(name, array)` are compiled against NumPy 1 and read the wrong field of a NumPy 2 dtype
as its size: under NumPy 2 every input would be its first element repeated, and every output empty, without an error.
DLPack is also a little faster.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]
_CONSUMED = ctypes.c_char_p(b"used_dltensor")


class _Capsule:
    """What `np.from_dlpack` asks of its argument. Triton's own tensor takes none of the keywords, which costs 6 us."""

    __slots__ = ("capsule",)

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU


def take(tensor: Any) -> NDArray:
    """Return a Triton tensor as a read-only view."""
    return np.from_dlpack(_Capsule(tensor.to_dlpack()))  # type: ignore[arg-type]


def give(name: str, array: NDArray) -> Any:
    """Return an array, contiguous and writable, as a Triton tensor that keeps it alive."""
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton marks the capsule as consumed with a name of its own, over which NumPy would print a traceback each time.
    _set_capsule_name(capsule, _CONSUMED)
    return tensor
