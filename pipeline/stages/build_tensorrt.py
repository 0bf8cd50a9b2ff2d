"""`build_tensorrt`: engines from the ONNX candidates, with TensorRT on a GPU or TensorRT-RTX ahead of time on a CPU.

Out: for each engine ``<candidate>/model.plan``, ``model.json`` (its spec), ``engine.json`` (which bytes, made by what, for
what) and ``layers.json`` (what it is made of); and ``engines.json``. Where neither builder can run, ``engines.json``
alone, with the reason.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.data.split import Split, open_split
from pipeline.errors import ModelError, Skipped
from pipeline.export import tensorrt
from pipeline.files import sha256
from pipeline.machine.gpu import Gpu, find_gpu
from pipeline.models.spec import SPEC_FILE, load_spec
from pipeline.progress.events import report
from pipeline.protocols import Metrics, Runner
from pipeline.records.candidates import Candidate, load_candidates
from pipeline.records.engines import LAYERS_FILE, Engine, Engines, OnGpu, Profile, save_engine, save_engines
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.parity import compare
from pipeline.runners.runner import TensorRTRunner
from pipeline.runners.timing import time_runners
from pipeline.settings.export import BuildTensorrt
from pipeline.settings.serving import Serving

IMAGES = 1000
"""Validation images, at most, that an engine answers beside ONNX Runtime."""
SECONDS = 0.5
"""Least time of each timing."""
_log = logging.getLogger(__name__)


def build_tensorrt(config: BuildTensorrt, *, data: Path, candidates: Path, serving: Serving, out: Path) -> Metrics:
    """Build an engine for each of `config.candidates`, for batches of 1 to `serving.max_batch_size`.

    On a GPU each engine is also timed and compared with ONNX Runtime on validation images of `data`; without one it is
    said that neither was done. Returns ``<candidate>_build_seconds``, ``_plan_bytes``, ``_int8_layers`` and what was
    measured. Raises `Skipped` where no builder can run or it is off, and `ModelError` naming the node that a builder
    refuses.
    """
    gpu = find_gpu()
    builder, reason = choose(config.builder, gpu)
    if builder is None:
        save_engines(out, Engines(skipped=reason))
        raise Skipped(reason)
    if builder == "tensorrt_rtx" and gpu and gpu.compute_capability not in tensorrt.RTX_TARGETS:
        gpu = None  # the engine is for other machines
    found = load_candidates(candidates)
    wanted = [found.named(name) for name in config.candidates]
    validation = open_split(data, "validation")
    largest = serving.max_batch_size
    profile = Profile(min=1, opt=max(1, largest // 2), max=largest)
    why_not = _why_not_measured(gpu)
    built: list[Engine] = []
    for candidate in wanted:
        report("build_tensorrt", done=len(built), total=len(wanted))
        engine = _build(builder, candidate, candidates, profile, gpu, out)
        on_gpu = None if why_not else measure(engine, out, candidates / candidate.file, validation)
        built.append(engine.model_copy(update={"on_gpu": on_gpu, "not_measured": why_not}))
        save_engine(out, built[-1])
    report("build_tensorrt", done=len(built), total=len(wanted))
    if why_not:
        _log.warning("the engines were not run: %s", why_not)
    save_engines(out, Engines(engines=tuple(built)))
    return {key: value for engine in built for key, value in _metrics(engine).items()}


def choose(wanted: str, gpu: Gpu | None) -> tuple[tensorrt.Builder | None, str]:
    """Return the builder that `wanted` (the setting ``build_tensorrt.builder``) means on this machine, or None and why."""
    if wanted == "off":
        return None, "build_tensorrt.builder is 'off'"
    order: tuple[tensorrt.Builder, ...] = ("tensorrt", "tensorrt_rtx")
    reasons = []
    for builder in order:
        if wanted in {"auto", builder}:
            reason = tensorrt.missing(builder, gpu)
            if reason is None:
                return builder, ""
            reasons.append(reason)
    return None, f"build_tensorrt.builder is {wanted!r}: {'; '.join(reasons)}"


def _why_not_measured(gpu: Gpu | None) -> str | None:
    if gpu is None:
        return "built ahead of time, for a GPU that is not here: neither latency nor answers were measured"
    if not torch.cuda.is_available():
        return f"PyTorch, which holds an engine's buffers, does not see the {gpu.name}: install its CUDA build"
    return None


def _build(
    builder: tensorrt.Builder,
    candidate: Candidate,
    candidates: Path,
    profile: Profile,
    gpu: Gpu | None,
    out: Path,
) -> Engine:
    """Build one engine and write it with all that stands beside it. Raises `ModelError`."""
    onnx_file = candidates / candidate.file
    found = sha256(onnx_file)
    if found != candidate.sha256:
        raise ModelError(f"{onnx_file} was changed: its SHA-256 is {found}, candidates.json says {candidate.sha256}")
    spec = load_spec(onnx_file.parent)
    started = time.perf_counter()
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    plan = tensorrt.build(builder, onnx_file, shapes, (profile.min, profile.opt, profile.max), gpu, spec.sparse)
    seconds = time.perf_counter() - started
    file = out / candidate.name / "model.plan"
    file.parent.mkdir()
    file.write_bytes(plan.data)
    shutil.copy2(onnx_file.parent / SPEC_FILE, file.parent / SPEC_FILE)
    layers = json.dumps(plan.describe(), indent=1)
    (file.parent / LAYERS_FILE).write_text(layers + "\n", encoding="utf-8")
    engine = Engine(
        candidate=candidate.name,
        file=f"{candidate.name}/model.plan",
        sha256=sha256(file),
        size_bytes=len(plan.data),
        onnx_sha256=candidate.sha256,
        builder=builder,
        builder_version=tensorrt.module(builder).__version__,
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        targets=(gpu.compute_capability,) if gpu and builder == "tensorrt" else tensorrt.RTX_TARGETS,
        profile=profile,
        build_seconds=round(seconds, 3),
        layers_from=plan.layers_from,
        layers=len(plan.layers),
        precisions=plan.precisions,
        sparse_asked=spec.sparse,
        sparse_layers=plan.sparse_layers,
    )
    save_engine(out, engine)
    return engine


def measure(engine: Engine, out: Path, onnx_file: Path, validation: Split) -> OnGpu:
    """Run the engine in `out` on this machine's GPU beside the ONNX file that it was built from.

    Both answer the same `IMAGES` validation images. The engine is timed at the batch sizes of its profile.
    """
    images = np.ascontiguousarray(validation.slice(0, IMAGES))
    labels = validation.labels[: len(images)]
    runner, reference = TensorRTRunner(out / engine.file), OnnxRunner(onnx_file)
    profile = engine.profile
    try:
        parity = compare(runner, reference, images, profile.max)
        return OnGpu(
            accuracy=_accuracy(runner, images, labels, profile.max),
            accuracy_onnx=_accuracy(reference, images, labels, profile.max),
            parity=parity,
            latency={
                batch: time_runners({"engine": runner}, images, batch, SECONDS)["engine"]
                for batch in sorted({profile.min, profile.opt, profile.max})
            },
        )
    finally:
        runner.close()
        reference.close()


def _accuracy(runner: Runner, images: np.ndarray, labels: np.ndarray, batch: int) -> float:
    return float((answer(runner, {"image": images}, batch)["logits"].argmax(axis=1) == labels).mean())


def _metrics(engine: Engine) -> dict[str, float]:
    name = engine.candidate
    metrics = {
        f"{name}_build_seconds": engine.build_seconds,
        f"{name}_plan_bytes": float(engine.size_bytes),
        f"{name}_int8_layers": float(engine.precisions.get("int8", 0)),
        f"{name}_float16_layers": float(engine.precisions.get("float16", 0)),
    }
    if engine.on_gpu is None:
        return metrics
    metrics |= {
        f"{name}_accuracy": engine.on_gpu.accuracy,
        f"{name}_accuracy_onnx": engine.on_gpu.accuracy_onnx,
        f"{name}_parity_max_difference": engine.on_gpu.parity.max_difference,
        f"{name}_changed_predictions": float(engine.on_gpu.parity.changed_predictions),
    }
    return metrics | {f"{name}_batch_{batch}_p50_ms": one.p50_ms for batch, one in engine.on_gpu.latency.items()}
