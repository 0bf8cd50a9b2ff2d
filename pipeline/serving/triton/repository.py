"""What a model looks like in Triton's repository: `config.pbtxt` from its spec, and the files of one version.

Nothing here speaks to Triton or changes what is served; `promotion` does.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    TYPE_UINT8,
    DataType,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelQueuePolicy,
    ModelWarmup,
)

from pipeline.errors import PromotionError
from pipeline.files import sha256, sync, write_json
from pipeline.models.spec import ModelSpec, TensorSpec
from pipeline.records.candidates import MODEL_FILE
from pipeline.records.engines import PLAN_FILE, load_engine
from pipeline.serving.triton.server import RESOURCE, TEMPORARY
from pipeline.settings.serving import Serving

BACKEND = Path(__file__).parent / "backend" / "model.py"
BESIDE_BACKEND = tuple(sorted(BACKEND.parent.glob("flyweight_*.py")))
"""What model.py imports: Triton looks for it in the directory of the version first."""
CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
MANIFEST_FILE = "manifest.json"
ATTEST, ATTESTED = "attest", "model_sha256"
"""The request parameter that asks for the served bytes' hash, and the output that holds it; model.py has the same."""

_MODEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LARGEST_VERSION = 2**31 - 1
TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
"""`TensorSpec.dtype` -> Triton's name of it."""


@dataclass(frozen=True)
class Artifact:
    """An ONNX file that is to be served."""

    onnx: Path
    spec: ModelSpec
    sha256: str
    candidate: str
    """Which of the pipeline's candidates it is."""
    plan: Path | None = None
    """The TensorRT engine that was built from `onnx`, with engine.json beside it: what the backend 'tensorrt' serves."""


def check_name(model: str) -> None:
    """Raise `PromotionError` unless `model` may be a directory in the repository."""
    if not _MODEL_NAME.fullmatch(model) or any(mark in model for mark in TEMPORARY):
        raise PromotionError(
            f"serving.model is {model!r}: a model's name is a lower-case letter, then up to 63 lower-case letters, digits "
            f"and '_', without {' or '.join(TEMPORARY)}"
        )


def check_version(version: int) -> None:
    """Raise `PromotionError` unless `version` is a small positive integer: Triton aborts on one beyond 63 bits."""
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= _LARGEST_VERSION:
        raise PromotionError(
            f"{version!r} cannot be a version: an integer from 1 to {_LARGEST_VERSION}, as the model registry counts them"
        )


def config_pbtxt(spec: ModelSpec, serving: Serving, versions: Sequence[int]) -> str:
    """Return the text of a model's `config.pbtxt` that serves exactly `versions`.

    It has no ``name``, so that a tried candidate can be renamed to the model. Warm-up requests of one image and of a full
    batch are answered before the model counts as ready, so that no client waits for first allocations. What a request
    gets to know of the served bytes (`ATTESTED`) only our own model.py can say, so the native backends lack that output.
    """
    config = ModelConfig(
        backend=serving.backend,
        max_batch_size=serving.max_batch_size if spec.batched else 0,
        input=[_input(tensor, spec) for tensor in spec.inputs],
        output=[_output(tensor, spec) for tensor in spec.outputs],
        instance_group=[_instance_group(serving)],
        parameters={key: ModelParameter(string_value=value) for key, value in _parameters(serving)},
        model_warmup=[_warmup(spec, size) for size in _warmup_sizes(spec, serving)],
    )
    if attests(serving):
        config.output.add(name=ATTESTED, data_type=TYPE_UINT8, dims=[32] if spec.batched else [1, 32])
    if spec.batched:
        config.dynamic_batching.CopyFrom(_dynamic_batching(serving))
    if serving.response_cache:
        config.response_cache.enable = True
    return config_text(config, versions)


def config_text(config: Any, versions: Sequence[int]) -> str:
    """Return the text of a `config.pbtxt` that says what `config` (protobuf ModelConfig) says and serves `versions`."""
    whole = ModelConfig()
    whole.CopyFrom(config)
    whole.version_policy.specific.ClearField("versions")
    whole.version_policy.specific.versions.extend(sorted(versions))
    return str(text_format.MessageToString(whole))


def attests(serving: Serving) -> bool:
    """Return whether the running model can say which bytes it was made from."""
    return serving.backend == "python"


def labels_text(spec: ModelSpec) -> str:
    """Return the content of the label file: one class per line, in the order of the first output; empty without labels."""
    return "".join(f"{label}\n" for label in spec.labels)


def read_config(path: Path) -> Any:
    """Return a `config.pbtxt` as protobuf. Raises `PromotionError`."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise PromotionError(f"{path} is not a config that Triton could read: {error}") from error


def served_versions(model_directory: Path) -> tuple[int, ...]:
    """Return the versions that a model's config names, in ascending order; none without a config."""
    path = model_directory / CONFIG_FILE
    return tuple(sorted(read_config(path).version_policy.specific.versions)) if path.exists() else ()


def version_directories(model_directory: Path) -> dict[int, Path]:
    """Return version -> directory for all that are on disk."""
    found = model_directory.iterdir() if model_directory.is_dir() else ()
    return {int(path.name): path for path in found if re.fullmatch(r"[0-9]{1,10}", path.name)}


def write_version(directory: Path, artifact: Artifact, serving: Serving, version: int) -> None:
    """Write all files of one version into the new `directory`, on disk for good. Raises `PromotionError`.

    The copy is hashed, not the original: what Triton will read is what was promised.
    """
    directory.mkdir(parents=True)
    manifest: dict[str, Any] = {"sha256": artifact.sha256, "candidate": artifact.candidate, "version": version}
    if serving.backend == "tensorrt":
        manifest["plan_sha256"] = _copy_plan(artifact, directory / PLAN_FILE)
    else:
        _copy(artifact.onnx, directory / MODEL_FILE, artifact.sha256, artifact.candidate)
    if serving.backend == "python":
        for source in (BACKEND, *BESIDE_BACKEND):
            shutil.copyfile(source, directory / source.name)
        manifest["backend"] = [source.name for source in (BACKEND, *BESIDE_BACKEND)]
        # The Python backend writes its cache beside model.py, which Triton takes for a new version of the model; a file
        # in the cache's place keeps it away.
        (directory / "__pycache__").touch()
    write_json(directory / MANIFEST_FILE, manifest)
    (directory / CONFIG_FILE).write_text(config_pbtxt(artifact.spec, serving, [version]), encoding="utf-8")
    (directory / LABELS_FILE).write_text(labels_text(artifact.spec), encoding="utf-8")
    sync([*directory.iterdir(), directory])


def write_model(directory: Path, artifact: Artifact, serving: Serving, version: int) -> None:
    """Write a whole model with one version into the new `directory`. Raises `PromotionError`."""
    directory.mkdir(parents=True)
    write_version(directory / str(version), artifact, serving, version)
    for name in (CONFIG_FILE, LABELS_FILE):
        shutil.copyfile(directory / str(version) / name, directory / name)
    sync([directory / CONFIG_FILE, directory / LABELS_FILE, directory])


def manifest_sha256(version_directory: Path) -> str:
    """Return the SHA-256 of the ONNX file that a version serves, or that its engine was built from."""
    manifest = json.loads((version_directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    return str(manifest["sha256"])


def same_interface(one: Path, other: Path) -> bool:
    """Return whether two version directories take and give the same tensors with the same labels.

    Only then can one `config.pbtxt` serve both at once.
    """
    first, second = read_config(one / CONFIG_FILE), read_config(other / CONFIG_FILE)
    labels = (one / LABELS_FILE).read_bytes() == (other / LABELS_FILE).read_bytes()
    return labels and list(first.input) == list(second.input) and list(first.output) == list(second.output)


def with_versions(config_file: Path, versions: Sequence[int]) -> str:
    """Return the text of `config_file` with a version policy that names `versions`."""
    return config_text(read_config(config_file), versions)


def _copy(source: Path, target: Path, promised: str, candidate: str) -> None:
    shutil.copyfile(source, target)
    copied = sha256(target)
    if copied != promised:
        raise PromotionError(
            f"{source} has SHA-256 {copied}, but candidate {candidate!r} was recorded with {promised}: the file changed "
            f"after it was exported. Run `flyweight export_onnx` again"
        )


def _copy_plan(artifact: Artifact, target: Path) -> str:
    """Copy the engine of `artifact`, which is the one that engine.json beside it describes, and return its SHA-256."""
    if artifact.plan is None:
        raise PromotionError(
            f"serving.backend is 'tensorrt', but candidate {artifact.candidate!r} has no engine: name it in "
            f"build_tensorrt.candidates and run `flyweight build_tensorrt` on a machine with the server's GPU"
        )
    promised = load_engine(artifact.plan).sha256
    _copy(artifact.plan, target, promised, artifact.candidate)
    return promised


def _input(tensor: TensorSpec, spec: ModelSpec) -> ModelInput:
    return _shaped(ModelInput(name=tensor.name, data_type=DataType.Value(TYPES[tensor.dtype])), tensor, spec)


def _output(tensor: TensorSpec, spec: ModelSpec) -> ModelOutput:
    made = ModelOutput(name=tensor.name, data_type=DataType.Value(TYPES[tensor.dtype]))
    if spec.labels and tensor is spec.outputs[0]:
        made.label_filename = LABELS_FILE
    return _shaped(made, tensor, spec)


def _shaped(made: Any, tensor: TensorSpec, spec: ModelSpec) -> Any:
    """Give an input or output its axes.

    Triton knows no tensor without axes: clients see one of length 1, which it takes away again where there is a batch
    axis, and model.py where there is none.
    """
    made.dims.extend(tensor.shape or (1,))
    if spec.batched and not tensor.shape:
        made.reshape.SetInParent()  # to no axes
    return made


def _instance_group(serving: Serving) -> ModelInstanceGroup:
    kind = ModelInstanceGroup.KIND_GPU if serving.gpus else ModelInstanceGroup.KIND_CPU
    group = ModelInstanceGroup(count=serving.instances, kind=kind, gpus=serving.gpus)
    if serving.units:
        group.rate_limiter.resources.add(name=RESOURCE, count=serving.units, **{"global": True})
    return group


def _dynamic_batching(serving: Serving) -> ModelDynamicBatching:
    """How requests are put together.

    Triton's own limits of the queue are for the native backends alone: model.py has limits of its own. With any of them
    Triton 2.51, which has no native backends, makes requests wait 500 ms now and again: see
    docs/decisions/triton-queue.md.
    """
    levels = serving.priority_levels
    made = ModelDynamicBatching(
        max_queue_delay_microseconds=serving.queue_delay_us, priority_levels=levels, default_priority_level=levels
    )
    if serving.backend == "python":
        return made
    if serving.queue_timeout_ms:
        made.default_queue_policy.timeout_action = ModelQueuePolicy.REJECT
        made.default_queue_policy.default_timeout_microseconds = round(serving.queue_timeout_ms * 1000)
        made.default_queue_policy.allow_timeout_override = True
    if serving.max_queue_size:
        made.default_queue_policy.max_queue_size = serving.max_queue_size
    return made


def _parameters(serving: Serving) -> list[tuple[str, str]]:
    """What a backend gets beside the interface: its threads, and model.py the limits of the queue."""
    if serving.backend == "onnxruntime":
        return [("intra_op_thread_count", str(serving.threads)), ("inter_op_thread_count", "1")]
    if serving.backend == "tensorrt":
        return []
    return [
        ("threads", str(serving.threads)),
        *([("max_queue_size", str(serving.max_queue_size))] if serving.max_queue_size else []),
        *([("queue_timeout_ms", f"{serving.queue_timeout_ms:g}")] if serving.queue_timeout_ms else []),
    ]


def _warmup_sizes(spec: ModelSpec, serving: Serving) -> list[int]:
    if not serving.warmup:
        return []
    return sorted({1, serving.max_batch_size}) if spec.batched else [1]


def _warmup(spec: ModelSpec, size: int) -> ModelWarmup:
    made = ModelWarmup(name=f"batch of {size}", batch_size=size)
    for tensor in spec.inputs:
        wanted = made.inputs[tensor.name]
        wanted.data_type, wanted.zero_data = DataType.Value(TYPES[tensor.dtype]), True
        wanted.dims.extend(max(1, length) for length in tensor.shape or (1,))
    return made
