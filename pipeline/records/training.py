"""The files that trainings leave: the history of their epochs, and which of two students was kept."""

from __future__ import annotations

HISTORY_FILE = "history.json"
BASELINE_FILE = "baseline.json"
