"""Which model a benchmark of serving measures, and what is said of it and of the machine."""

from __future__ import annotations

import os
import platform
import re
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from pipeline.files import sha256
from pipeline.machine import cpu, places
from pipeline.serving.load.tuning import TUNED
from pipeline.serving.triton.artifact import from_file
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.serving import Serving
from pipeline.tracking.registry import model_registry


def champion(directory: Path) -> Path:
    """Fetch the registry's champion into `directory` and return its ONNX file. Raises `SystemExit` where there is none."""
    how = "Name a file with --model FILE, or make a champion with `make demo`"
    try:
        urllib.request.urlopen(f"{places.mlflow()}/health", timeout=2).close()
    except OSError as error:
        raise SystemExit(f"No MLflow answers at {places.mlflow()} ({error}), so there is no champion. {how}") from error
    registry, name = model_registry(), Serving().model
    version = registry.aliases(name).get("champion")
    if version is None:
        raise SystemExit(f"The registry at {places.mlflow()} has no champion of {name!r}. {how}")
    registry.fetch(name, version, directory)
    return directory / "model.onnx"


def one_in_one_out(file: Path) -> Artifact:
    """Return `file` as an artifact. Raises `SystemExit` for what the peers here cannot serve."""
    artifact = from_file(file)
    spec = artifact.spec
    if not spec.batched or len(spec.inputs) != 1 or len(spec.outputs) != 1 or min(spec.inputs[0].shape, default=0) < 1:
        raise SystemExit(
            f"{file}: this benchmark is for a model with a batch axis, one input of fixed shape, one output"
        )
    return artifact


def facts(models: Mapping[str, Artifact], serving: Serving) -> dict[str, Any]:
    """Return what must be known of machine and models to read the figures."""
    found = cpu.describe()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": found.model,
        "flags": list(found.flags),
        "cores": cpu.cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": [round(part, 2) for part in os.getloadavg()],
        "models": {
            name: {"file": one.onnx.name, "bytes": one.onnx.stat().st_size, "sha256": sha256(one.onnx)}
            for name, one in models.items()
        },
        "serving": {name: getattr(serving, name) for name in TUNED},
    }


def slug() -> str:
    """Return the processor's name for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", cpu.describe().model.lower().replace("(r)", "")).strip("-")
