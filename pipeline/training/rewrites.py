"""What rewrites a network for the time of its training, named by data: a job reaches its processes as JSON."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict

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


def make(spec: RewriteSpec) -> Rewrite:
    """Return the rewrite that `spec` names."""
    module, _, name = spec.name.partition(":")
    made: Rewrite = getattr(importlib.import_module(module), name)(**spec.arguments)
    return made
