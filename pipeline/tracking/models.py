"""Log candidates as MLflow models, with signature and input example, and with the very bytes that were measured."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.models.spec import SPEC_FILE, load_spec
from pipeline.records.candidates import MODEL_FILE, load_candidates


def log_all(client: Any, experiment: str, run_id: str, out: Path) -> None:
    """Log every candidate that `export_onnx` left in `out`."""
    for candidate in load_candidates(out).candidates:
        log(client, experiment, run_id, (out / candidate.file).parent, candidate.sha256)


def log(client: Any, experiment: str, run_id: str | None, directory: Path, sha256: str) -> Any:
    """Log the model in `directory` (model.onnx, model.json) and return MLflow's record of it."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    spec = load_spec(directory)
    batch = (-1,) if spec.batched else ()

    def schema(tensors: Any) -> Schema:
        return Schema([TensorSpec(np.dtype(t.dtype), (*batch, *t.shape), t.name) for t in tensors])

    model = client.create_logged_model(
        experiment, directory.name, source_run_id=run_id, tags={"sha256": sha256}, model_type="onnx"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.onnx.save_model(
            onnx.load(directory / MODEL_FILE),
            str(path),
            signature=ModelSignature(schema(spec.inputs), schema(spec.outputs)),
            input_example={t.name: np.zeros([max(1, n) for n in (*batch, *t.shape)], t.dtype) for t in spec.inputs},
            pip_requirements=["onnxruntime", "numpy"],
            save_as_external_data=False,
        )
        # MLflow writes the graph again; what may be promoted from here must be the very bytes that were measured.
        for name in (MODEL_FILE, SPEC_FILE):
            shutil.copyfile(directory / name, path / name)
        client.log_model_artifacts(model.model_id, str(path))
    return client.finalize_logged_model(model.model_id, "READY")
