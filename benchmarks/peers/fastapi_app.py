"""Plain FastAPI: the body's bytes to the model, the answer's bytes back. In the event loop, which is fastest for a small model."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from onnx_rows import Rows

app = FastAPI()
rows = Rows()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Answer one request."""
    return Response(rows(await request.body()), media_type="application/octet-stream")
