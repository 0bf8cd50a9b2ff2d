"""In which arithmetic a training runs its forward pass."""

from __future__ import annotations

import logging

import torch

from pipeline.settings.training import Fit
from pipeline.training.distributed import ranks

_log = logging.getLogger(__name__)


def use_bf16(section: str, fit: Fit, device: torch.device) -> bool:
    """Whether to multiply in bfloat16: where `fit` of the settings' `section` asks for it and `device` can."""
    if fit.amp == "bf16" and not has_bf16(device) and ranks.is_main():
        _log.warning("%s.amp is bf16, which %s has no instructions for: training in float32", section, device)
    return fit.amp == "bf16" and has_bf16(device)


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; elsewhere it would be slower than float32, not faster."""
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("bf16"))
    return torch.cuda.is_bf16_supported(including_emulation=False)
