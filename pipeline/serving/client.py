"""Asking Triton over gRPC: predictions, attested hashes, and the control of models.

Every call has a deadline. What goes wrong is a `TritonError` whose `status` is gRPC's name for it and whose message says
what was asked of whom; it is no `FlyweightError`, as another try may pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from pipeline import places
from pipeline.errors import DataError
from pipeline.serving import local_triton
from pipeline.serving.repository import ATTEST, ATTESTED

_MESSAGE_BYTES = 2**31 - 1


class TritonError(Exception):
    """Triton did not do what was asked.

    Args:
        message: what was asked, of whom, and what came back.
        status: gRPC's name of the status, such as ``NOT_FOUND``.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    outputs: Mapping[str, NDArray]
    version: int
    """The version that answered."""


class Client:
    """One gRPC connection to Triton.

    Args:
        url: ``host:port``; `places.triton_grpc()` if None.
        timeout: deadline of each call in seconds, but of loading a model.
    """

    def __init__(self, url: str | None = None, timeout: float = 10.0) -> None:
        self.url = url or places.triton_grpc()
        self.timeout = timeout
        self._client = triton.InferenceServerClient(self.url)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

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
        tensors = []
        for name, array in inputs.items():
            tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            tensors.append(tensor)
        parameters = {ATTEST: True} if attest else None
        result = self._call(
            f"an answer of {model}",
            self._client.infer,
            model_name=model,
            inputs=tensors,
            model_version=version,
            parameters=parameters,
        )
        response = result.get_response()
        outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
        return Answer(outputs, int(response.model_version))

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

    def _call(self, what: str, method: Any, timeout: float | None = None, **arguments: Any) -> Any:
        try:
            return method(client_timeout=timeout or self.timeout, **arguments)
        except InferenceServerException as error:
            status = str(error.status() or "UNKNOWN").removeprefix("StatusCode.")
            raise TritonError(f"{what}: Triton at {self.url} says {status}: {error.message()}", status) from error


class TritonRunner:
    """A served model behind the calling convention of `pipeline.runners`.

    Args:
        model: its name.
        version: of the model; the highest that is served if empty.
        url: ``host:port`` of Triton.
    """

    def __init__(self, model: str, version: str = "", url: str | None = None) -> None:
        self.name = f"triton:{model}"
        self._model, self._version = model, version
        self._client = Client(url)

    def __call__(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """Named batched arrays in, named batched arrays out. Raises `TritonError`."""
        return self._client.infer(self._model, inputs, self._version).outputs

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


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
    return {f"triton-grpc-protocol-{local_triton.CONTROL_KEY}": local_triton.control_key()}
