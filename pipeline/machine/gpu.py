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


@dataclass(frozen=True)
class Usage:
    """How busy a GPU is: percent of the time, and megabytes."""

    utilization: float
    memory_used: float
    memory_total: float


def find_gpu() -> Gpu | None:
    """Return the first GPU that the driver's own tool lists, or None."""
    found = _query("name", "driver_version", "compute_cap")
    if not found:
        return None
    name, driver, capability = found[0]
    return Gpu(name, driver, f"SM{capability.replace('.', '')}")


def usage() -> list[Usage]:
    """Return how busy each GPU is; nothing where there is none, or where the driver cannot say."""
    found = _query("utilization.gpu", "memory.used", "memory.total", units=False)
    try:
        return [Usage(*map(float, values)) for values in found]
    except ValueError:  # "[N/A]"
        return []


def _query(*names: str, units: bool = True) -> list[list[str]]:
    """What the driver's own tool says of each GPU; nothing where it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, f"--query-gpu={','.join(names)}", f"--format=csv,noheader{'' if units else ',nounits'}"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode:
        return []
    return [[part.strip() for part in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
