"""PyTorch and TensorRT behind the calling convention of all runners.

Named batched arrays in, named batched arrays out.

They take raw pixels, ``{"image": (N, C, H, W) uint8}``, and give ``{"logits": (N, classes) float32}``, so that "the
same model" is something that can be measured. `pipeline.runners.onnx_runner.OnnxRunner` is of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.export import tensorrt
from pipeline.models.checkpoint import Checkpoint, WithPreprocessing
from pipeline.records.engines import load_engine


class TorchRunner:
    """A checkpoint in PyTorch, on the CPU.

    Args:
        checkpoint: one that has been read, or the directory of model.json and model.safetensors.
        threads: CPU threads; PyTorch knows only one number for the whole process, so the last runner's holds.
    """

    def __init__(self, checkpoint: Checkpoint | Path, threads: int = 1) -> None:
        loaded = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.load(checkpoint)
        self.name = f"torch:{loaded.directory.name}"
        self._output = loaded.spec.outputs[0].name
        self._model = WithPreprocessing(loaded.spec, loaded.network).eval()
        torch.set_num_threads(threads)

    def __call__(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """``{"image": (N, C, H, W) uint8}`` -> ``{"logits": (N, classes) float32}``."""
        image = np.ascontiguousarray(inputs["image"])
        with torch.inference_mode():
            # A memory-mapped batch is read-only, which torch.from_numpy warns of; torch.tensor copies it.
            logits = self._model(torch.from_numpy(image) if image.flags.writeable else torch.tensor(image))
        return {self._output: logits.numpy()}

    def close(self) -> None:
        """Let go of the weights."""
        del self._model


class TensorRTRunner:
    """A plan that `build_tensorrt` wrote, on the first GPU. PyTorch holds its buffers.

    Args:
        file: ``<candidate>/model.plan``; engine.json beside it says which builder made it.

    Raises:
        ModelError: there is no GPU, or the plan is for another version, driver or GPU.
    """

    def __init__(self, file: Path) -> None:
        self.name = f"tensorrt:{file.parent.name}"
        made = load_engine(file)
        if not torch.cuda.is_available():
            raise ModelError(
                f"{file} needs a GPU, and PyTorch sees none on this machine. An engine that was built ahead of time "
                f"runs only where its GPU is; measure the ONNX candidate here instead."
            )
        self._trt = tensorrt.module(made.builder)
        self._engine = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR)).deserialize_cuda_engine(
            file.read_bytes()
        )
        if self._engine is None:
            raise ModelError(
                f"{made.builder} cannot load {file}: it was built with version {made.builder_version} for "
                f"{', '.join(made.targets)}, this is {self._trt.__version__} on {torch.cuda.get_device_name()}. "
                f"Run `flyweight build_tensorrt` on this machine."
            )
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()

    def __call__(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """Named batched arrays inside the engine's profile -> named batched arrays."""
        tensors: dict[str, torch.Tensor] = {}
        with torch.cuda.stream(self._stream):
            for name, array in inputs.items():
                tensors[name] = torch.tensor(array, device="cuda")
                self._context.set_input_shape(name, tuple(array.shape))
            outputs = [name for name in self._names() if name not in inputs]
            for name in outputs:
                shape, dtype = tuple(self._context.get_tensor_shape(name)), self._dtype(name)
                tensors[name] = torch.empty(shape, dtype=dtype, device="cuda")
            for name, tensor in tensors.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise ModelError(f"{self.name} refused a batch of shape {[a.shape for a in inputs.values()]}")
            self._stream.synchronize()
            return {name: tensors[name].cpu().numpy() for name in outputs}

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def _dtype(self, name: str) -> torch.dtype:
        return getattr(torch, np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name)

    def close(self) -> None:
        """Let go of engine and context."""
        del self._context, self._engine
