"""A registered version as something that can be promoted: its files, checked against what the registry says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PromotionError
from pipeline.files import sha256
from pipeline.models.spec import load_spec
from pipeline.protocols import Registry
from pipeline.records.candidates import MODEL_FILE
from pipeline.serving.triton.golden import GOLDEN_FILE, Golden, load_golden
from pipeline.serving.triton.repository import Artifact

VERDICT = "verdict"
PASSED, BY_HAND = "PROMOTE", "by hand"
"""What the tag `verdict` of a registered version says: it passed the gate, or a person promoted a file of their own."""


@dataclass(frozen=True)
class Pulled:
    """A registered version."""

    version: int
    artifact: Artifact
    golden: Golden
    tags: Mapping[str, str]


def pull(registry: Registry, model: str, version: int, directory: Path) -> Pulled:
    """Fetch `version` of `model` into the new `directory` and hold it to its tags.

    Raises `PromotionError` where there is no such version, it did not pass the gate, it has no golden answers, or its
    bytes are not those that were registered.
    """
    directory.mkdir(parents=True)
    tags = registry.fetch(model, version, directory)
    who = f"version {version} of {model} in the registry"
    if tags.get(VERDICT) not in {PASSED, BY_HAND}:
        raise PromotionError(
            f"{who} has the tag {VERDICT} = {tags.get(VERDICT)!r}, not {PASSED!r}: it did not pass the gate. Run "
            f"`flyweight all`, or promote the file itself with `flyweight promote --onnx`"
        )
    missing = [name for name in (MODEL_FILE, "model.json", GOLDEN_FILE) if not (directory / name).is_file()]
    if missing:
        raise PromotionError(
            f"{who} has no {', '.join(missing)}: it was not registered by a promotion. Promote its source"
        )
    found = sha256(directory / MODEL_FILE)
    if found != tags.get("sha256"):
        raise PromotionError(
            f"{who} has SHA-256 {found}, but was registered with {tags.get('sha256')}: the file in the artifact store "
            f"has changed. Do not serve it; run `flyweight export_onnx` again"
        )
    artifact = Artifact(directory / MODEL_FILE, load_spec(directory), found, tags.get("candidate", "registered"))
    return Pulled(version, artifact, load_golden(directory / GOLDEN_FILE), tags)
