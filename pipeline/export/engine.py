"""A candidate as an engine, with all that stands beside the plan: its spec, what it is, and what it is made of."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.export import tensorrt
from pipeline.files import sha256
from pipeline.machine.gpu import Gpu
from pipeline.models.spec import SPEC_FILE, load_spec
from pipeline.records.candidates import Candidate
from pipeline.records.engines import LAYERS_FILE, PLAN_FILE, Engine, Profile, save_engine


def write_engine(
    builder: tensorrt.Builder, candidate: Candidate, candidates: Path, profile: Profile, gpu: Gpu | None, out: Path
) -> Engine:
    """Build the engine of a candidate in the directory `candidates` and write it below `out`.

    Without `gpu` it is built ahead of time. Raises `ModelError` where the file is not the one that was exported, or where
    the builder refuses it.
    """
    onnx_file = candidates / candidate.file
    found = sha256(onnx_file)
    if found != candidate.sha256:
        raise ModelError(f"{onnx_file} was changed: its SHA-256 is {found}, candidates.json says {candidate.sha256}")
    spec = load_spec(onnx_file.parent)
    started = time.perf_counter()
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    plan = tensorrt.build(builder, onnx_file, shapes, (profile.min, profile.opt, profile.max), gpu, spec.sparse)
    seconds = time.perf_counter() - started
    file = out / candidate.name / PLAN_FILE
    file.parent.mkdir()
    file.write_bytes(plan.data)
    shutil.copy2(onnx_file.parent / SPEC_FILE, file.parent / SPEC_FILE)
    (file.parent / LAYERS_FILE).write_text(json.dumps(plan.describe(), indent=1) + "\n", encoding="utf-8")
    engine = Engine(
        candidate=candidate.name,
        file=f"{candidate.name}/{PLAN_FILE}",
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
