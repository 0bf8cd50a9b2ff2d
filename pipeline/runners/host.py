"""The machine that measured times belong to, as evaluation.json records it."""

from __future__ import annotations

import platform

import onnxruntime
import torch

from pipeline.machine import cpu
from pipeline.records.evaluation import Host


def host(triton: str | None) -> Host:
    """Return what the measured times belong to; `triton` is the server's version."""
    found = cpu.describe()
    return Host(
        cpu=found.model,
        cores=cpu.cores(),
        flags=found.flags,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        torch=torch.__version__,
        triton=triton,
    )
