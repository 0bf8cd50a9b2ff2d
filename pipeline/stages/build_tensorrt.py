"""`build_tensorrt`: engines from the ONNX candidates, with TensorRT on a GPU or TensorRT-RTX ahead of time on a CPU.

Out: ``<candidate>/model.plan`` and ``<candidate>/model.json`` for each engine, and ``engines.json``; where neither
builder can run, ``engines.json`` alone, with the reason.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from pipeline import trt
from pipeline.candidates import Candidate, Engine, Engines, Profile, load_candidates, save
from pipeline.checkpoint import SPEC_FILE, load_spec, sha256
from pipeline.config import BuildTensorrt, Serving
from pipeline.errors import ModelError, Skipped
from pipeline.progress import report
from pipeline.types import Metrics


def build_tensorrt(config: BuildTensorrt, *, candidates: Path, serving: Serving, out: Path) -> Metrics:
    """Build an engine for each of `config.candidates`, for batches of 1 to `serving.max_batch_size`.

    Returns ``<candidate>_build_seconds``, ``_plan_bytes`` and ``_int8_layers``. Raises `Skipped` where no builder can run
    or it is off, and `ModelError` naming the node that a builder refuses.
    """
    gpu = trt.find_gpu()
    builder, reason = choose(config.builder, gpu)
    if builder is None:
        save(out, Engines(skipped=reason))
        raise Skipped(reason)
    if builder == "tensorrt_rtx" and gpu and gpu.compute_capability not in trt.RTX_TARGETS:
        gpu = None  # the engine is for other machines
    found = load_candidates(candidates)
    wanted = [found.named(name) for name in config.candidates]
    largest = serving.max_batch_size
    profile = Profile(min=1, opt=max(1, largest // 2), max=largest)
    built: list[Engine] = []
    for candidate in wanted:
        report("build_tensorrt", done=len(built), total=len(wanted))
        built.append(_build(builder, candidate, candidates, profile, gpu, out))
    report("build_tensorrt", done=len(built), total=len(wanted))
    engines = Engines(
        builder=builder,
        builder_version=trt.module(builder).__version__,
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        targets=(gpu.compute_capability,) if gpu and builder == "tensorrt" else trt.RTX_TARGETS,
        profile=profile,
        layers_from="engine" if gpu else "network",
        engines=tuple(built),
    )
    save(out, engines)
    return {key: value for engine in built for key, value in _metrics(engine).items()}


def choose(wanted: str, gpu: trt.Gpu | None) -> tuple[trt.Builder | None, str]:
    """Return the builder that `wanted` (the setting ``build_tensorrt.builder``) means on this machine, or None and why."""
    if wanted == "off":
        return None, "build_tensorrt.builder is 'off'"
    order: tuple[trt.Builder, ...] = ("tensorrt", "tensorrt_rtx")
    reasons = []
    for builder in order:
        if wanted in {"auto", builder}:
            reason = trt.missing(builder, gpu)
            if reason is None:
                return builder, ""
            reasons.append(reason)
    return None, f"build_tensorrt.builder is {wanted!r}: {'; '.join(reasons)}"


def _build(
    builder: trt.Builder, candidate: Candidate, candidates: Path, profile: Profile, gpu: trt.Gpu | None, out: Path
) -> Engine:
    """Build one engine and write it; returns what there is to say of it. Raises `ModelError`."""
    onnx_file = candidates / candidate.file
    found = sha256(onnx_file)
    if found != candidate.sha256:
        raise ModelError(f"{onnx_file} was changed: its SHA-256 is {found}, candidates.json says {candidate.sha256}")
    spec = load_spec(onnx_file.parent)
    started = time.perf_counter()
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    plan = trt.build(builder, onnx_file, shapes, (profile.min, profile.opt, profile.max), gpu)
    seconds = time.perf_counter() - started
    file = out / candidate.name / "model.plan"
    file.parent.mkdir()
    file.write_bytes(plan.data)
    shutil.copy2(onnx_file.parent / SPEC_FILE, file.parent / SPEC_FILE)
    return Engine(
        candidate=candidate.name,
        file=f"{candidate.name}/model.plan",
        sha256=sha256(file),
        size_bytes=len(plan.data),
        onnx_sha256=candidate.sha256,
        build_seconds=round(seconds, 3),
        int8_layers=plan.int8_layers,
        layers=plan.layers,
    )


def _metrics(engine: Engine) -> dict[str, float]:
    return {
        f"{engine.candidate}_build_seconds": engine.build_seconds,
        f"{engine.candidate}_plan_bytes": float(engine.size_bytes),
        f"{engine.candidate}_int8_layers": float(engine.int8_layers),
    }
