"""TensorRT and TensorRT-RTX behind one code path: which can build here, and how an ONNX file becomes a plan.

Networks are strongly typed: the precision of every layer is what the ONNX file says, and no builder flag changes it.
TensorRT measures kernels on the GPU it builds for; TensorRT-RTX builds ahead of time, without one.
Neither library is imported before it is asked for: it is hundreds of megabytes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pipeline import places
from pipeline.errors import ModelError

Builder = Literal["tensorrt", "tensorrt_rtx"]
MODULES: dict[Builder, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}
PACKAGES: dict[Builder, str] = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13-bindings"}
RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120", "SM121")
"""What TensorRT-RTX builds for: all that it knows but Turing (SM75), for which it has no float32 matrix product."""
WORKSPACE_BYTES = 1 << 30
_CURES = (
    ("Int32 but must have type", "its bias is quantized: build int8_tensorrt, whose biases stay float"),
    ("zero", "its activations have a zero point: build int8_tensorrt, which is symmetric"),
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    driver: str
    compute_capability: str
    """As in ``SM89``."""


def find_gpu() -> Gpu | None:
    """Return the first GPU that the driver's own tool lists, or None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode or not answer.stdout.strip():
        return None
    name, driver, capability = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
    return Gpu(name, driver, f"SM{capability.replace('.', '')}")


def missing(builder: Builder, gpu: Gpu | None) -> str | None:
    """Return why `builder` cannot build here, or None if it can. Imports nothing."""
    if importlib.util.find_spec(MODULES[builder]) is None:
        return f"{builder}: the Python package {PACKAGES[builder]} is not installed"
    if builder == "tensorrt" and gpu is None:
        return "tensorrt: there is no GPU to time kernels on"
    return None


def module(builder: Builder) -> ModuleType:
    """Import `builder`'s Python module. Raises `ModelError` where its libraries do not load."""
    try:
        return importlib.import_module(MODULES[builder])
    except (ImportError, OSError) as error:
        raise ModelError(
            f"{builder} is installed but does not load: {error}. Reinstall {PACKAGES[builder]}, "
            f"or set build_tensorrt.builder to 'off'."
        ) from error


@dataclass(frozen=True)
class Plan:
    """A serialized engine and what it is made of."""

    data: bytes
    layers: tuple[str, ...]
    int8_layers: int


def build(
    builder: Builder,
    onnx_file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    profile: tuple[int, int, int],
    gpu: Gpu | None,
) -> Plan:
    """Build the plan of `onnx_file`.

    Args:
        builder: which library.
        onnx_file: strongly typed by itself; int8 as symmetric Q/DQ pairs.
        shapes: name of each input -> its shape without the batch axis.
        profile: smallest, most usual and largest batch.
        gpu: where the engine will run, or None to build ahead of time.

    Raises:
        ModelError: a node is refused, named with the reason and the cure, or the builder finds no kernels.
    """
    library = module(builder)
    log = _logger(library)
    made = library.Builder(log)
    network = made.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        raise ModelError(_refusal(builder, onnx_file, parser))
    config = made.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    batches = made.create_optimization_profile()
    for name, shape in shapes.items():
        batches.set_shape(name, *((batch, *shape) for batch in profile))
    config.add_optimization_profile(batches)
    cache = None
    if builder == "tensorrt_rtx":
        config.num_compute_capabilities = len(RTX_TARGETS)
        for index, target in enumerate(RTX_TARGETS):
            config.set_compute_capability(getattr(library.ComputeCapability, target), index)
    else:
        cache = _timing_cache(library, config, gpu)
    plan = made.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(
            f"{builder} cannot build {onnx_file.parent.name}: {'; '.join(log.errors[-2:]) or 'it gives no reason'}. "
            f"Take it out of build_tensorrt.candidates, or set build_tensorrt.builder to 'off'."
        )
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    layers = _network_layers(network) if gpu is None else _engine_layers(library, log, plan)
    return Plan(bytes(plan), tuple(layers), sum("int8" in layer.lower().rpartition(" -> ")[2] for layer in layers))


def _logger(library: ModuleType) -> Any:
    """Return a logger that keeps errors for our own messages instead of printing them."""

    class Errors(library.ILogger):  # type: ignore[name-defined]  # the library is known at run time only
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.errors.append(message.strip())

    return Errors()


def _refusal(builder: Builder, onnx_file: Path, parser: Any) -> str:
    """One sentence a refused node: its name, operator, why, and what to do."""
    sentences = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reason = " ".join(error.desc().split())
        cure = next(
            (cure for text, cure in _CURES if text in reason),
            "replace that operator in the model, or take the candidate out of build_tensorrt.candidates",
        )
        sentences.append(f"node {error.node_name()!r} ({error.node_operator()}): {reason}. Cure: {cure}")
    return f"{builder} refuses {onnx_file.parent.name}/{onnx_file.name}: " + "; ".join(sentences)


def _timing_cache(library: ModuleType, config: Any, gpu: Gpu | None) -> Path:
    """Give `config` the kernel timings of earlier builds; return where to keep them. They hold for one GPU and version."""
    assert gpu is not None
    name = f"{library.__version__}-{gpu.compute_capability}-{gpu.driver}.timing"
    file = places.home() / "tensorrt" / name
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return file


def _network_layers(network: Any) -> list[str]:
    """Each parsed layer, before fusing: name, kind and output types."""
    lines = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        types = [layer.get_output(output).dtype.name for output in range(layer.num_outputs)]
        lines.append(f"{layer.name}: {layer.type.name} -> {', '.join(types)}")
    return lines


def _engine_layers(library: ModuleType, log: Any, plan: Any) -> list[str]:
    """Each layer of the engine as it will run, after fusing: name, kind and output types."""
    engine = library.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise ModelError(f"the engine that was just built does not load: {'; '.join(log.errors[-2:])}")
    inspector = engine.create_engine_inspector()
    described = json.loads(inspector.get_engine_information(library.LayerInformationFormat.JSON))
    lines = []
    for layer in described.get("Layers", []):
        if isinstance(layer, str):  # the inspector gives names alone where it keeps nothing more
            lines.append(layer)
            continue
        types = [output.get("Format/Datatype", output.get("Datatype", "?")) for output in layer.get("Outputs", [])]
        lines.append(f"{layer.get('Name')}: {layer.get('LayerType')} -> {', '.join(types)}")
    return lines
