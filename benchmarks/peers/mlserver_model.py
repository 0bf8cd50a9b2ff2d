"""MLServer, over gRPC: a row is one element of type BYTES, so that MLServer does not make a list of numbers of it."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.types import Datatype, InferenceRequest, InferenceResponse, ResponseOutput
from onnx_rows import Rows


class Model(MLModel):
    """One session a worker."""

    async def load(self) -> bool:
        """Make the session."""
        self.rows = Rows()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request, or a batch of them that MLServer has put together."""
        data = payload.inputs[0].data
        images = list(getattr(data, "root", data))
        answers = [row.tobytes() for row in self.rows.array(b"".join(images))]
        output = ResponseOutput(name="answers", shape=[len(answers), 1], datatype=Datatype.BYTES, data=answers)
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[output])
