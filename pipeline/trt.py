"""TensorRT and TensorRT-RTX behind one name: which can run here, and their Python modules.

Neither is imported before it is asked for: importing takes a GPU driver or hundreds of megabytes of libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from pipeline.errors import ModelError

Builder = Literal["tensorrt", "tensorrt_rtx"]
MODULES: dict[Builder, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}
PACKAGES: dict[Builder, str] = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13"}


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    driver: str
    compute_capability: str
    """As in ``SM89``."""


def find_gpu() -> Gpu | None:
    """Return the first GPU that the driver's own tool lists, or None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode or not answer.stdout.strip():
        return None
    name, driver, capability = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
    return Gpu(name, driver, f"SM{capability.replace('.', '')}")


def missing(builder: Builder, gpu: Gpu | None) -> str | None:
    """Return why `builder` cannot build here, or None if it can. Imports nothing."""
    if importlib.util.find_spec(MODULES[builder]) is None:
        return f"{builder}: the Python package {PACKAGES[builder]} is not installed"
    if builder == "tensorrt" and gpu is None:
        return "tensorrt: there is no GPU to time kernels on"
    return None


def module(builder: Builder) -> ModuleType:
    """Import `builder`'s Python module. Raises `ModelError` where its libraries do not load."""
    try:
        return importlib.import_module(MODULES[builder])
    except (ImportError, OSError) as error:
        raise ModelError(
            f"{builder} is installed but does not load: {error}. Reinstall {PACKAGES[builder]}, "
            f"or set build_tensorrt.builder to 'off'."
        ) from error
