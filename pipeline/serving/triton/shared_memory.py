"""Inputs handed to a Triton on the same machine in shared memory, instead of through a socket.

It pays for large tensors alone: below some 100 kB per request the bookkeeping costs more than the copies that it saves.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as shm
from numpy.typing import NDArray


class Region:
    """One growing region that a client has registered with its server; for one request at a time.

    Args:
        client: `tritonclient.grpc.InferenceServerClient` of a server on this machine.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._name = ""
        self._handle: Any = None
        self._size = 0

    def place(self, arrays: Mapping[str, NDArray]) -> Iterator[tuple[str, int, int]]:
        """Copy `arrays` into the region and yield, for each, the region's name, its bytes and where they begin."""
        self._reserve(sum(array.nbytes for array in arrays.values()))
        start = 0
        for array in arrays.values():
            shm.set_shared_memory_region(self._handle, [np.ascontiguousarray(array)], offset=start)
            yield self._name, array.nbytes, start
            start += array.nbytes

    def close(self) -> None:
        """Take the region back from the server and delete it."""
        if self._handle is not None:
            with contextlib.suppress(Exception):  # a server that is gone holds nothing
                self._client.unregister_system_shared_memory(self._name)
            shm.destroy_shared_memory_region(self._handle)
            self._handle, self._size = None, 0

    def _reserve(self, size: int) -> None:
        if size <= self._size:
            return
        self.close()
        self._name = f"flyweight_client_{uuid.uuid4().hex}"
        self._size = 2 * size
        self._handle = shm.create_shared_memory_region(self._name, f"/{self._name}", self._size)
        self._client.register_system_shared_memory(self._name, f"/{self._name}", self._size)
