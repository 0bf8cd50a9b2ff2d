"""A teacher's logits for every training image, kept on disk for the next stage.

Several stages need them of the very same views.

A file is named after the weights, the images and the arithmetic, so it never goes out of date; it may be deleted at any
time.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.data.manifest import MANIFEST_FILE
from pipeline.files import sha256
from pipeline.machine import places
from pipeline.models import checkpoint
from pipeline.models.spec import SPEC_FILE


def file(teacher: Path, data: Path, precision: str) -> Path:
    """Return where the logits of the checkpoint `teacher` for the training split of `data` are, or would be.

    `precision` tells logits apart that were calculated in different ways, such as ``cpu bf16``.
    """
    weights, spec = (sha256(teacher / name) for name in (checkpoint.WEIGHTS_FILE, SPEC_FILE))
    images = sha256(data / MANIFEST_FILE)
    key = hashlib.sha256(json.dumps([weights, spec, images, precision]).encode()).hexdigest()
    return places.cache() / "answers" / f"{key[:32]}.safetensors"


def load(path: Path) -> Tensor:
    """Return the logits (N, classes) in `path`, in the order of the split."""
    return load_file(path)["logits"]


def save(path: Path, logits: Tensor) -> None:
    """Write `logits` (N, classes) to `path`, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_suffix(f".{os.getpid()}")
    save_file({"logits": logits.cpu().contiguous()}, begun)
    begun.replace(path)
