"""Others' ways to the same end, used as their documentation shows: what `compression.py` measures itself against."""

from __future__ import annotations

import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import torch
import torch_pruning
from int8_forms import Reader
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import Field
from torch import Tensor, nn

from pipeline.models import size, surgery
from pipeline.models.spec import ModelSpec, PruningStep

NNCF = ("nncf==3.4.0", f"onnx=={onnx.__version__}", f"onnxruntime=={onnxruntime.__version__}")
NAMES = ("ONNX Runtime defaults", "NNCF")
PeerQuantizer = Callable[[Path, NDArray[np.uint8], Path], None]


def quantizers(work: Path) -> dict[str, PeerQuantizer]:
    """Return the other quantizers; NNCF gets an environment of its own below `work`."""
    python = work / "nncf" / "bin" / "python"

    def nncf(file: Path, images: NDArray[np.uint8], out: Path) -> None:
        if not python.exists():
            venv.create(work / "nncf", with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *NNCF], check=True)
        with tempfile.TemporaryDirectory() as directory:
            np.save(Path(directory) / "images.npy", images)
            script = Path(__file__).parent / "nncf_quantize.py"
            subprocess.run([python, script, file, f"{directory}/images.npy", out], check=True, capture_output=True)

    return dict(zip(NAMES, (onnxruntime_defaults, nncf), strict=True))


def onnxruntime_defaults(file: Path, images: NDArray[np.uint8], out: Path) -> None:
    """`quantize_static` with nothing set, after the preprocessing that its documentation recommends."""
    with tempfile.TemporaryDirectory() as directory:
        prepared = Path(directory) / "prepared.onnx"
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        quantize_static(prepared, out, Reader(images))


class PlainTorchPruning:
    """torch-pruning as its README shows it: group norms, every layer alike, the last one left out.

    Args:
        keep_macs: share of the multiply-accumulates to keep: the smallest ratio, in steps of 0.01, that goes below is taken.
    """

    def __init__(self, keep_macs: Annotated[float, Field(gt=0.0, lt=1.0)]) -> None:
        self.keep_macs = keep_macs

    def rounds(self, count: int) -> Sequence[PlainTorchPruning]:
        """One."""
        assert count == 1
        return [self]

    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Prune in place."""
        image = torch.zeros(1, *spec.image_shape)
        whole = size.macs(network, spec.image_shape)
        steps = 100
        pruner = torch_pruning.pruner.BasePruner(
            network,
            image,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.99,
            iterative_steps=steps,
            round_to=8,
            ignored_layers=[network.get_submodule("head")],
        )
        while size.macs(network, spec.image_shape) > self.keep_macs * whole:
            pruner.step()
        return PruningStep(method="torch-pruning", widths=surgery.widths(network))
