"""The file that `quantize` leaves: what to serve, and the proof."""

from __future__ import annotations

QUANTIZATION_FILE = "quantization.json"
