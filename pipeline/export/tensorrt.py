"""TensorRT and TensorRT-RTX behind one code path: which can build here, and how an ONNX file becomes a plan.

Networks are strongly typed: the precision of every layer is what the ONNX file says, and no builder flag changes it.
TensorRT measures kernels on the GPU it builds for; TensorRT-RTX builds ahead of time, without one.
Neither library is imported before it is asked for: it is hundreds of megabytes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pipeline.errors import ModelError
from pipeline.machine import places
from pipeline.machine.gpu import Gpu

Builder = Literal["tensorrt", "tensorrt_rtx"]
MODULES: dict[Builder, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}
PACKAGES: dict[Builder, str] = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13-bindings"}
RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120", "SM121")
"""What TensorRT-RTX builds for: all that it knows except Turing (SM75), for which it has no float32 matrix product."""
WORKSPACE_BYTES = 1 << 30
_TAKE_OUT = "replace that operator in the model, or take the candidate out of build_tensorrt.candidates"
_CURES = (
    (r"Int32 but must have type", "its bias is quantized: build int8_tensorrt, whose biases stay float"),
    (
        r"^(DynamicQuantizeLinear|ConvInteger|MatMulInteger)\b",
        "its ranges are found while it runs, which TensorRT does not do: quantize with static or qat",
    ),
    (r"^MatMulNBits\b", "this form of int4 is ONNX Runtime's own: take the candidate out of build_tensorrt.candidates"),
    (r"zero point", "its activations have a zero point: build int8_tensorrt, which is symmetric"),
    (
        r"same (input )?types?\b",
        "the types meet without a cast: cast one of them in the model, or build the float candidate",
    ),
    (
        r"[Uu]nsupported data type|convert ONNX da",
        "TensorRT has no such type: compute in float32, float16, bfloat16, int8, int32 or int64",
    ),
    (
        r"violate shape constraints",
        "a batch size is written as a number in the model: take it from the input (`x.shape[0]`, or -1)",
    ),
    (r"", _TAKE_OUT),
)
"""What a refusal (``operator: reason``) matches -> what to do about it; the first that matches."""


def missing(builder: Builder, gpu: Gpu | None) -> str | None:
    """Return why `builder` cannot build here, or None if it can. Imports nothing."""
    if importlib.util.find_spec(MODULES[builder]) is None:
        return f"{builder}: the Python package {PACKAGES[builder]} is not installed"
    if builder == "tensorrt" and gpu is None:
        return "tensorrt: there is no GPU to time kernels on"
    return None


def choose(wanted: str, gpu: Gpu | None) -> tuple[Builder | None, str]:
    """Return the builder that `wanted` (the setting ``build_tensorrt.builder``) means on this machine, or None and why."""
    if wanted == "off":
        return None, "build_tensorrt.builder is 'off'"
    order: tuple[Builder, ...] = ("tensorrt", "tensorrt_rtx")
    reasons = []
    for builder in order:
        if wanted in {"auto", builder}:
            reason = missing(builder, gpu)
            if reason is None:
                return builder, ""
            reasons.append(reason)
    return None, f"build_tensorrt.builder is {wanted!r}: {'; '.join(reasons)}"


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
class Layer:
    """One layer of a network or an engine."""

    name: str
    kind: str
    types: tuple[str, ...]
    """Of its outputs, in the library's words."""

    @property
    def precisions(self) -> frozenset[str]:
        """`types` in our words, such as int8 or float16."""
        return frozenset(map(_precision, self.types))


@dataclass(frozen=True)
class Plan:
    """A serialized engine and what it is made of."""

    data: bytes
    layers: tuple[Layer, ...]
    layers_from: Literal["engine", "network"]
    """engine: as it will run, after fusing; network: as parsed, where there is no GPU to load the engine."""
    inspector: Mapping[str, Any] | None = None
    """What the engine inspector says, in its own words."""
    sparse_layers: tuple[str, ...] | None = None
    """Layers whose kernels pass over zeros; None where nothing was asked for, or the builder does not tell."""

    @property
    def precisions(self) -> dict[str, int]:
        """Type -> layers that give out tensors of it."""
        return dict(sorted(Counter(one for layer in self.layers for one in layer.precisions).items()))

    @property
    def int8_layers(self) -> int:
        """Layers that give out int8: 0 says that nothing was quantized."""
        return self.precisions.get("int8", 0)

    def describe(self) -> dict[str, Any]:
        """Return the content of layers.json."""
        described = {"from": self.layers_from, "layers": [asdict(layer) for layer in self.layers]}
        return described | ({"inspector": self.inspector} if self.inspector is not None else {})


_PRECISIONS = ("uint8", "int8", "int4", "int32", "int64", "fp8", "fp4", "bool")


def _precision(words: str) -> str:
    """Return the type that a library's words name: ``HALF`` and ``Row major linear FP16 format`` are float16."""
    text = words.lower()
    if "bf16" in text or "bfloat16" in text:
        return "bfloat16"
    if "half" in text or "fp16" in text or "float16" in text:
        return "float16"
    if "fp32" in text or "float" in text:
        return "float32"
    return next((name for name in _PRECISIONS if name in text), words)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Put the cyclic garbage collector off.

    The libraries call the logger while they hold a lock of their own. Were the collector to run just then, and find the
    builder of an earlier build that failed (its error's traceback holds it), the library would wait for its own lock for
    ever: seen with TensorRT-RTX 1.7.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_without_collecting()
def build(
    builder: Builder,
    onnx_file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    profile: tuple[int, int, int],
    gpu: Gpu | None,
    sparse: bool = False,
) -> Plan:
    """Build the plan of `onnx_file`.

    Args:
        builder: which library.
        onnx_file: strongly typed; int8 as symmetric Q/DQ pairs.
        shapes: name of each input -> its shape without the batch axis.
        profile: smallest, most usual and largest batch.
        gpu: where the engine will run, or None to build ahead of time.
        sparse: whether the builder may look for weights of which 2 of 4 are zero, and take sparse kernels where these are
            faster.

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
    if sparse:
        config.set_flag(library.BuilderFlag.SPARSE_WEIGHTS)
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
        reason = _plain("; ".join(log.errors[-2:]) or "it gives no reason")
        raise ModelError(f"{builder} cannot build {onnx_file.parent.name}: {reason}. Cure: {_cure('', reason)}")
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    if gpu is None:
        return Plan(bytes(plan), _network_layers(network), "network", sparse_layers=_sparse_layers(log.sparsity))
    described = _inspect(library, log, plan)
    return Plan(bytes(plan), _engine_layers(described), "engine", described, _sparse_layers(log.sparsity))


def _logger(library: ModuleType) -> Any:
    """Return a logger that keeps errors, for our own messages, and what is said of sparsity, and prints neither."""

    class Kept(library.ILogger):  # type: ignore[name-defined]  # the library is known at run time only
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []
            self.sparsity: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.errors.append(message.strip())
            elif message.startswith("(Sparsity)"):
                self.sparsity.append(message.strip())

    return Kept()


def _sparse_layers(said: Sequence[str]) -> tuple[str, ...] | None:
    """Return the layers that TensorRT says it picked sparse kernels for, or None where it says nothing of sparsity.

    It says so in its log alone: first which layers have the pattern, then which of these are faster so.
    https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/io-formats-sparsity.html
    """
    if not said:
        return None
    picked = (line.partition("sparse implementation for layers:")[2] for line in said)
    return tuple(name.strip() for names in picked for name in names.split(",") if name.strip())


def _refusal(builder: Builder, onnx_file: Path, parser: Any) -> str:
    """One sentence a refused node: its name, operator, why, and what to do."""
    sentences = []
    for error in map(parser.get_error, range(parser.num_errors)):
        operator, reason = error.node_operator(), _plain(error.desc())
        sentences.append(f"node {error.node_name()!r} ({operator}): {reason}. Cure: {_cure(operator, reason)}")
    return f"{builder} refuses {onnx_file.parent.name}/{onnx_file.name}: " + "; ".join(sentences)


def _plain(reason: str) -> str:
    """`reason` on one line, without the library's complaint that there is no driver, which has no part in it."""
    text = " ".join(reason.split()).partition(" [checkMacros.cpp")[0]
    return "it knows no such operator" if text == "false" or "lugin" in text else text


def _cure(operator: str, reason: str) -> str:
    return next(cure for pattern, cure in _CURES if re.search(pattern, f"{operator}: {reason}"))


def _timing_cache(library: ModuleType, config: Any, gpu: Gpu | None) -> Path:
    """Give `config` the kernel timings of earlier builds; return where to keep them. They hold for one GPU and version.

    TensorRT-RTX times nothing while it builds: there such a cache has been without effect since its version 1.2.
    """
    assert gpu is not None
    name = f"{library.__version__}-{gpu.compute_capability}-{gpu.driver}.timing"
    file = places.home() / "tensorrt" / name
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return file


def _network_layers(network: Any) -> tuple[Layer, ...]:
    """Each parsed layer, before fusing."""
    layers = map(network.get_layer, range(network.num_layers))
    return tuple(
        Layer(one.name, one.type.name, tuple(one.get_output(index).dtype.name for index in range(one.num_outputs)))
        for one in layers
    )


def _inspect(library: ModuleType, log: Any, plan: Any) -> dict[str, Any]:
    """Return what the engine inspector says of the engine in `plan`. Raises `ModelError`."""
    engine = library.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise ModelError(f"the engine that was just built does not load: {'; '.join(log.errors[-2:])}")
    inspector = engine.create_engine_inspector()
    described: dict[str, Any] = json.loads(inspector.get_engine_information(library.LayerInformationFormat.JSON))
    return described


def _engine_layers(described: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Each layer of the engine as it will run, after fusing."""
    layers = []
    for layer in described.get("Layers", []):
        if isinstance(layer, str):  # the inspector gives names alone where it keeps nothing more
            layers.append(Layer(layer, "", ()))
            continue
        types = (str(output.get("Format/Datatype", output.get("Datatype", "?"))) for output in layer.get("Outputs", []))
        layers.append(Layer(str(layer.get("Name")), str(layer.get("LayerType")), tuple(types)))
    return tuple(layers)
