"""What rewrites a network for its training, named by data: a job travels as JSON."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.compression.pruning.sparsity import KeepSparsity
from pipeline.models.spec import ModelSpec
from pipeline.protocols import Rewrite


class RewriteSpec(BaseModel):
    """A class of the Protocol `Rewrite`, and its constructor's arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """``package.module:Class``."""
    arguments: dict[str, Any] = {}
    """Anything JSON can hold."""


def rewrite(kind: type, **arguments: Any) -> RewriteSpec:
    """Return the spec of ``kind(**arguments)``."""
    return RewriteSpec(name=f"{kind.__module__}:{kind.__qualname__}", arguments=arguments)


def keep_sparsity(spec: ModelSpec) -> tuple[RewriteSpec, ...]:
    """Return what keeps the zeros that pruning has set, where it has set any."""
    return (rewrite(KeepSparsity),) if any(step.zeros for step in spec.pruning) else ()


def make(spec: RewriteSpec) -> Rewrite:
    """Return the rewrite that `spec` names."""
    module, _, name = spec.name.partition(":")
    made: Rewrite = getattr(importlib.import_module(module), name)(**spec.arguments)
    return made
