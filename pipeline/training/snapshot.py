"""A training's state as one safetensors file: the tensors, and everything else as JSON in its header. Never a pickle.

One file, written beside the old one and moved over it: a process that is killed leaves the old state or the new, whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.files import move_over

_HEADER = "flyweight"


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace `path`, at once and for good, by `tensors` and `state` (anything JSON can hold)."""
    fresh = path.with_suffix(".new")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, fresh, metadata={_HEADER: json.dumps(dict(state))})
    move_over(fresh, path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and the state in `path`, or None where there is no such file."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[_HEADER])  # noqa: SIM118
