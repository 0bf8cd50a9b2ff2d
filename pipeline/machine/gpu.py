"""The GPU of this machine, as the driver's own tool names it. Imports no CUDA library."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass


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
