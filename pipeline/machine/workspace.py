"""The workspace, where a user's files are, and the source, where the package itself lies.

Files of the package (templates, Triton's model.py) are found beside the code that reads them, never through the workspace.
"""

from __future__ import annotations

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
"""The directory that holds the package `pipeline`: a child process imports it from there. In a clone it also has dags/,
docs/ and requirements.lock."""


def root() -> Path:
    """Return the directory with params.yaml, recipes/, dvc.yaml, data/ and the stores: the clone. ``FLYWEIGHT_ROOT``."""
    return Path(os.environ.get("FLYWEIGHT_ROOT", SOURCE))
