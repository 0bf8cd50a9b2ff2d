"""Modules by their former names: code of a user that imports one works on, with a warning that names the new one.

`Finder` is asked first, else what is inside a renamed folder would be loaded a second time by its path; it imports nothing.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "checkpoint": "models.checkpoint",
    "config": "settings.parse",
    "datasets": "data.datasets",
    "distributed": "training.distributed",
    "losses": "training.losses",
    "macs": "models.size",
    "model_spec": "models.spec",
    "models.resnet": "models.architectures.resnet",
    "onnx_graph": "export.onnx_graph",
    "onnx_runner": "runners.onnx_runner",
    "proof": "compression.quantization.proof",
    "pruners": "compression.pruning.pruners",
    "quantizers": "compression.quantization.quantizers",
    "serving.client": "serving.triton.client",
    "serving.onnx_spec": "models.onnx_spec",
    "surgery": "models.surgery",
    "trt": "export.tensorrt",
    "types": "protocols",
}
"""Former name -> new name, both below `pipeline`; what is inside a folder moved along."""
NAMES = {
    "data": {
        **dict.fromkeys(("Images", "Labels", "Manifest", "load_manifest"), "data.manifest"),
        "open_split": "data.split",
    },
    "progress": {"report": "progress.events"},
}
"""Module that became a folder -> its former names -> where each is now."""


class Finder:
    """Finds a module by its former name, for ``sys.meta_path``; it is the same module object as by its new name."""

    def __init__(self, new: str = "") -> None:
        self._new = new

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Return how to load `name`, or None where it is no former name."""
        package, _, inside = name.partition(".")
        for old, new in MODULES.items() if package == "pipeline" else ():
            if inside == old or inside.startswith(f"{old}."):
                return ModuleSpec(name, Finder(f"pipeline.{new}{inside.removeprefix(old)}"))  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the making of an empty module to Python; `exec_module` puts the real one in its place."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name under the former name."""
        sys.modules[module.__name__] = importlib.import_module(self._new)
        _warn(module.__name__, self._new)


def former_names(package: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a `package` that was a module."""

    def find(name: str) -> Any:
        where = NAMES[package.removeprefix("pipeline.")].get(name)
        if where is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"pipeline.{where}.{name}")
        return getattr(importlib.import_module(f"pipeline.{where}"), name)

    return find


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name will go", DeprecationWarning, stacklevel=3)
