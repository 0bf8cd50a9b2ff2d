"""Asking Triton over gRPC: predictions, attested hashes, and the control of models.

`Client` waits for each answer; `AsyncClient` (`aio`) does not. Every call has a deadline. What goes wrong is a
`TritonError` whose `status` is gRPC's name for it and whose message says what was asked of whom; it is no
`FlyweightError`, as another try may pass. On its own a client tries again only where nothing can have reached the server,
and what it was asked to repeat.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from pipeline.errors import DataError
from pipeline.machine import places
from pipeline.serving.triton import calls, errors, server, tls
from pipeline.serving.triton.calls import Answer, Served
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import ATTEST, ATTESTED
from pipeline.serving.triton.shared_memory import Region


class Client:
    """One gRPC connection to Triton, encrypted where `places.triton_tls` says so.

    Args:
        url: ``host:port``; `places.triton_grpc()` if None.
        timeout: deadline of each call in seconds, repetitions included, but of loading a model.
        retries: how often a call is repeated. Always safe where no connection was had; a request for an answer is also
            repeated where the connection was lost, as a model that is asked twice answers twice the same. What the
            server has refused, an overload above all, is never repeated.
        shared_memory: hand inputs to a server on this machine in shared memory; for one thread, and large tensors.
    """

    def __init__(
        self, url: str | None = None, timeout: float = 10.0, *, retries: int = 0, shared_memory: bool = False
    ) -> None:
        self.url = url or places.triton_grpc()
        self.timeout = timeout
        self.retries = retries
        self._client: Any = triton.InferenceServerClient(
            self.url, keepalive_options=calls.KEEP_ALIVE, **tls.client_options()
        )
        self._region = Region(self._client) if shared_memory else None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection, and of shared memory; a second time does nothing."""
        if self._region is not None:
            self._region.close()
            self._region = None
        if self._client is not None:
            self._client.close()
            self._client = None  # else its own __del__ closes it again, at the interpreter's end with a traceback

    def live(self) -> bool:
        """Return whether a server answers at all."""
        try:
            return bool(self._client.is_server_live(client_timeout=self.timeout))
        except InferenceServerException:
            return False

    def ready(self, model: str = "", version: str = "") -> bool:
        """Return whether the server, or one model, or one version of it, is ready to answer."""
        try:
            if not model:
                return bool(self._client.is_server_ready(client_timeout=self.timeout))
            return bool(self._client.is_model_ready(model, version, client_timeout=self.timeout))
        except InferenceServerException:
            return False

    def server_version(self) -> str:
        """Return Triton's version."""
        return str(self._call("server metadata", self._client.get_server_metadata).version)

    def infer(self, model: str, inputs: Mapping[str, NDArray], version: str = "", *, attest: bool = False) -> Answer:
        """Return the answer to batched `inputs`; without `version` the highest version that is served answers.

        With `attest` the outputs hold `model_sha256` too: the hash of the bytes that the answering model was made from.
        """
        result = self._call(
            f"an answer of {model}",
            self._client.infer,
            repeat=errors.LOST,
            model_name=model,
            inputs=calls.tensors(inputs, self._region),
            model_version=version,
            parameters={ATTEST: True} if attest else None,
        )
        return calls.answer(result)

    def infer_rows(self, model: str, inputs: Mapping[str, NDArray], rows: int = 64, version: str = "") -> Answer:
        """Return the answers to any number of rows, asked in requests of at most `rows`, put together again.

        Raises `TritonError`, also where the served version changed between two of the requests: with status ``ABORTED``.
        """
        return calls.joined(model, [self.infer(model, part, version) for part in calls.parts(inputs, rows)])

    def predict(self, model: str, images: NDArray[np.uint8], version: str = "") -> NDArray[np.float32]:
        """Return the first output, such as logits (N, classes), for raw `images` (N, C, H, W)."""
        metadata = self.metadata(model, version)
        answer = self.infer(model, {metadata.inputs[0].name: images}, version)
        return answer.outputs[metadata.outputs[0].name]

    def attested(self, model: str, version: str = "") -> tuple[str, int]:
        """Return the SHA-256 of the bytes that the running model was made from, and the version that says so."""
        zeros = {
            tensor.name: np.zeros([max(1, size) for size in tensor.shape], triton_to_np_dtype(tensor.datatype))
            for tensor in self.metadata(model, version).inputs
        }
        answer = self.infer(model, zeros, version, attest=True)
        if ATTESTED not in answer.outputs:
            raise TritonError(f"{model} on {self.url} does not attest what it serves", "UNIMPLEMENTED")
        return answer.outputs[ATTESTED][0].tobytes().hex(), answer.version

    def metadata(self, model: str, version: str = "") -> Any:
        """Return the model's inputs and outputs (protobuf ModelMetadataResponse)."""
        return self._call(
            f"the metadata of {model}", self._client.get_model_metadata, model_name=model, model_version=version
        )

    def labels(self, model: str) -> list[str]:
        """Return the class names of a model's first output, as the classification extension gives them."""
        output = self.metadata(model).outputs[0]
        wanted = triton.InferRequestedOutput(output.name, class_count=int(output.shape[-1]))
        metadata = self.metadata(model).inputs[0]
        zeros = np.zeros([max(1, size) for size in metadata.shape], triton_to_np_dtype(metadata.datatype))
        tensor = triton.InferInput(metadata.name, zeros.shape, metadata.datatype)
        tensor.set_data_from_numpy(zeros)
        result = self._call(
            f"the labels of {model}", self._client.infer, model_name=model, inputs=[tensor], outputs=[wanted]
        )
        rows = [entry.decode("utf-8").split(":", 2) for entry in result.as_numpy(output.name).reshape(-1)]
        return [row[2] for row in sorted(rows, key=lambda row: int(row[1]))]

    def served(self, model: str) -> dict[int, Served]:
        """Return what each loaded version of `model` has answered since it was loaded, by Triton's own count."""
        found = self._call(f"the statistics of {model}", self._client.get_inference_statistics, model_name=model)
        return {
            int(stats.version): Served(
                answered=stats.inference_stats.success.count,
                failed=stats.inference_stats.fail.count,
                seconds=stats.inference_stats.success.ns / 1e9,
            )
            for stats in found.model_stats
        }

    def index(self) -> dict[str, dict[int, str]]:
        """Return model -> version -> state (``READY``, ``LOADING``, ``UNAVAILABLE``, empty for not loaded)."""
        index = self._call("the repository's index", self._client.get_model_repository_index, headers=_control())
        found: dict[str, dict[int, str]] = {}
        for entry in index.models:
            versions = found.setdefault(entry.name, {})
            if entry.version:
                versions[int(entry.version)] = entry.state
        return found

    def load(self, model: str, timeout: float) -> None:
        """Load or reload `model` from the repository and wait for it, at most `timeout` seconds."""
        self._call(f"loading {model}", self._client.load_model, timeout, model_name=model, headers=_control())

    def unload(self, model: str) -> None:
        """Stop serving `model`; what is in flight is answered."""
        self._call(f"unloading {model}", self._client.unload_model, model_name=model, headers=_control())

    def _call(
        self,
        what: str,
        method: Any,
        timeout: float | None = None,
        repeat: re.Pattern[str] | None = None,
        **arguments: Any,
    ) -> Any:
        """Call `method` until it answers, the deadline has passed, or it fails as may not be repeated."""
        end = time.monotonic() + (timeout or self.timeout)
        for pause in calls.pauses(self.retries):
            try:
                return method(client_timeout=max(0.001, end - time.monotonic()), **arguments)
            except InferenceServerException as error:
                if pause is None or not errors.repeatable(error, repeat) or time.monotonic() + pause > end:
                    raise errors.translated(what, self.url, error) from error
            time.sleep(pause)
        raise AssertionError("the last pause is None")


def load_image(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return an image file as raw pixels (C, H, W) of `shape`: grey for one channel, RGB for three; resized to fit.

    Raises `DataError`.
    """
    channels, height, width = shape
    if channels not in {1, 3}:
        raise DataError(
            f"{path} cannot be shown to a model of {channels} channels: image files have 1 (grey) or 3 (RGB)"
        )
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB").resize((width, height)))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is not an image that can be read ({error}); give a PNG or JPEG file") from error
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))


def classify(paths: Sequence[Path], model: str, url: str | None = None) -> list[tuple[str, float, int]]:
    """Return (label, probability, version that answered) of each image file, asked of the served `model`."""
    with Client(url) as client:
        metadata = client.metadata(model)
        (input_,), output = metadata.inputs, metadata.outputs[0].name
        _, channels, height, width = input_.shape
        labels = client.labels(model)
        found = []
        for path in paths:
            image = load_image(path, (channels, height, width))
            answer = client.infer(model, {input_.name: image[None]})
            logits = answer.outputs[output][0].astype(np.float64)
            shares = np.exp(logits - logits.max())
            best = int(shares.argmax())
            found.append((labels[best], float(shares[best] / shares.sum()), answer.version))
        return found


def _control() -> dict[str, str]:
    """Return the header that opens model control."""
    return {f"triton-grpc-protocol-{server.CONTROL_KEY}": server.control_key()}
