"""BentoML with bodies of raw bytes. Its own batching takes arrays as JSON only, which costs more than it gains here."""

import os

import bentoml
from onnx_rows import Rows


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]),
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Service:
    """One session a worker."""

    def __init__(self) -> None:
        self.rows = Rows()

    @bentoml.api
    async def predict(self, body: bytes, /) -> bytes:
        """Answer one request, in the event loop."""
        return self.rows(body)
