"""The file that `prepare_data` leaves: which bytes of data a pipeline run has."""

from __future__ import annotations

DATA_FILE = "data.json"
"""``dataset``, ``path`` (relative to the workspace where it is inside), ``dvc_md5`` and ``dvc_rev``."""
