"""Asking Triton for many answers at once in one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from pipeline.machine import places
from pipeline.serving.triton import calls, errors, tls
from pipeline.serving.triton.calls import Answer


class AsyncClient:
    """One gRPC connection to Triton for many requests at once in one event loop; made and used inside it.

    Args:
        url, timeout, retries: as of `Client`.
    """

    def __init__(self, url: str | None = None, timeout: float = 10.0, *, retries: int = 0) -> None:
        self.url = url or places.triton_grpc()
        self.timeout = timeout
        self.retries = retries
        self._client = triton_aio.InferenceServerClient(
            self.url, keepalive_options=calls.KEEP_ALIVE, **tls.client_options()
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.close()

    async def ready(self, model: str, version: str = "") -> bool:
        """Return whether a model, or one version of it, is ready to answer."""
        try:
            return bool(await self._client.is_model_ready(model, version, client_timeout=self.timeout))
        except InferenceServerException:
            return False

    async def infer(self, model: str, inputs: Mapping[str, NDArray], version: str = "") -> Answer:
        """Return the answer to `inputs`, as `Client.infer` does. Raises `TritonError`."""
        end = time.monotonic() + self.timeout
        tensors = calls.tensors(inputs)
        for pause in calls.pauses(self.retries):
            try:
                left = max(0.001, end - time.monotonic())
                return calls.answer(await self._client.infer(model, tensors, version, client_timeout=left))
            except InferenceServerException as error:
                if pause is None or not errors.repeatable(error, errors.LOST) or time.monotonic() + pause > end:
                    raise errors.translated(f"an answer of {model}", self.url, error) from error
            await asyncio.sleep(pause)
        raise AssertionError("the last pause is None")

    async def infer_rows(
        self, model: str, inputs: Mapping[str, NDArray], rows: int = 16, in_flight: int = 8, version: str = ""
    ) -> Answer:
        """Return the answers to any number of rows, as `Client.infer_rows` does, with some requests under way at once."""
        free = asyncio.Semaphore(in_flight)

        async def ask(part: Mapping[str, NDArray]) -> Answer:
            async with free:
                return await self.infer(model, part, version)

        return calls.joined(model, await asyncio.gather(*map(ask, calls.parts(inputs, rows))))
