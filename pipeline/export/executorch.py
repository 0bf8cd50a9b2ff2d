"""The door to phones: a network with its preprocessing as an ExecuTorch program, one ``.pte`` file.

ExecuTorch (https://docs.pytorch.org/executorch) is PyTorch's runtime for Android, iOS and microcontrollers. Its XNNPACK
kernels take what they can, its portable ones the rest. The package is an extra, `pip install flyweight[mobile]`, and is
imported only where the setting ``export_onnx.mobile`` asks for it. docs/decisions/mobile-export.md says why this one.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import ModelError, SettingsError
from pipeline.export.onnx_graph import describe, quiet
from pipeline.models.checkpoint import WithPreprocessing
from pipeline.models.spec import ModelSpec

MAX_BATCH = 8
"""Most images a call. ExecuTorch sets memory aside for the largest batch, and a phone looks at few images at a time. From 16
on, torch.export takes the CPU's choice of a convolution kernel for a limit of the model."""


def check_installed() -> None:
    """Raise `SettingsError` unless the package is there. Imports nothing."""
    if importlib.util.find_spec("executorch") is None:
        raise SettingsError(
            "export_onnx.mobile is 'executorch', but the Python package executorch is not installed: "
            "`pip install flyweight[mobile]`, or set export_onnx.mobile to 'off'"
        )


def export(spec: ModelSpec, network: nn.Module, file: Path, metadata: Mapping[str, str] = {}) -> tuple[str, ...]:
    """Write `network` with its preprocessing: ``image`` uint8 (1 to `MAX_BATCH`, C, H, W) -> ``logits`` float32.

    Its second method, ``metadata``, answers with labels, preprocessing and what `metadata` says, as JSON. Returns the
    operators that XNNPACK left to the portable kernels, which are slow; preprocessing is always among them. Raises
    `ModelError` where an operator cannot be written; `file` is written last and whole.
    """
    with quiet():  # its packages log what is of no use without a GPU
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    model = WithPreprocessing(spec, copy.deepcopy(network)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    example = torch.zeros(2, *spec.image_shape, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    facts = json.dumps({**describe(spec), **metadata}, ensure_ascii=False, sort_keys=True)
    try:
        with quiet():
            traced = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
            lowered = to_edge_transform_and_lower(
                traced, partitioner=[XnnpackPartitioner()], constant_methods={"metadata": facts}
            )
            left = _left_behind(lowered.exported_program().graph)
            program = lowered.to_executorch()
    except Exception as error:  # ExecuTorch's passes raise whatever they stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{spec.architecture} cannot be written for ExecuTorch: {reason}. Replace that operation in the model, "
            f"or set export_onnx.mobile to 'off'."
        ) from error
    file.write_bytes(program.buffer)
    return left


class MobileRunner:
    """An ExecuTorch program in ExecuTorch's own Python runtime.

    Args:
        file: what `export` wrote.

    Raises:
        ModelError: the file is no program, or an operator in it has no kernel.
    """

    def __init__(self, file: Path) -> None:
        self.name = f"executorch:{file.parent.name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself experimental at every import
            from executorch.runtime import Runtime
        try:
            self._program = Runtime.get().load_program(file)
            self._forward = self._program.load_method("forward")
        except RuntimeError as error:
            raise ModelError(f"ExecuTorch cannot load {file}: {error}") from error

    def __call__(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """``{"image": (1 to MAX_BATCH, C, H, W) uint8}`` -> ``{"logits": (N, classes) float32}``."""
        image = np.ascontiguousarray(inputs["image"])
        try:
            (logits,) = self._forward.execute([torch.tensor(image)])
        except RuntimeError as error:
            raise ModelError(
                f"{self.name} refuses images of shape {image.shape} (at most {MAX_BATCH} a call): {error}"
            ) from error
        return {"logits": logits.numpy()}

    def metadata(self) -> dict[str, str]:
        """Return what the program says of itself: labels, preprocessing, weights_sha256 and the like."""
        (facts,) = self._program.load_method("metadata").execute([])
        found: dict[str, str] = json.loads(facts)
        return found

    def close(self) -> None:
        """Let go of the program."""
        del self._forward, self._program


def _left_behind(graph: torch.fx.Graph) -> tuple[str, ...]:
    """The names of the operators that stand outside of every delegate, sorted; sizes are no work and left out."""
    names = {node.target.name() for node in graph.nodes if hasattr(node.target, "name")}
    return tuple(sorted(name for name in names if "delegate" not in name and "sym_size" not in name))
