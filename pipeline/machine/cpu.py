"""What this machine's CPU can do for integer arithmetic. int8 that is fast, or even right, on one CPU may not be on another."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_CPUINFO = Path("/proc/cpuinfo")
_INTEGER_FLAGS = ("avx2", "avx_vnni", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8", "asimddp", "i8mm")


class Cpu(BaseModel):
    """A CPU and its integer instructions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: str
    """x86_64, aarch64 or arm64."""
    model: str
    flags: tuple[str, ...]
    """Those of the operating system's names that matter for int8."""
    vnni: bool
    """Whether 8-bit products are summed in 32 bits: without it, x86 sums pairs in 16 bits, slower and able to saturate."""
    amx: bool

    @property
    def sums_in_16_bits(self) -> bool:
        """Whether sums of two products of 8-bit numbers are cut off: an x86 CPU that has neither VNNI nor AMX."""
        return self.machine in {"x86_64", "AMD64"} and not self.vnni and not self.amx


def describe(cpuinfo: Path = _CPUINFO) -> Cpu:
    """Return what is known of this machine's CPU; outside Linux little is."""
    model, found = platform.processor() or platform.machine(), set[str]()
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                model = value
            elif key in {"flags", "Features"}:
                found = set(value.split())
                break
    return Cpu(
        machine=platform.machine(),
        model=model,
        flags=tuple(flag for flag in _INTEGER_FLAGS if flag in found),
        vnni=bool(found & {"avx_vnni", "avx512_vnni"}),
        amx="amx_int8" in found,
    )


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
