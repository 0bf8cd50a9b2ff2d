"""`build_tensorrt`: engines from the ONNX candidates, with TensorRT on a GPU or TensorRT-RTX ahead of time on a CPU.

Out: for each engine ``<candidate>/model.plan``, ``model.json`` (its spec), ``engine.json`` (which bytes, made by what, for
what) and ``layers.json`` (what it is made of); and ``engines.json``. Where neither builder can run, ``engines.json``
alone, with the reason.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.data.split import open_split
from pipeline.errors import Skipped
from pipeline.evaluation.figures import engine_metrics
from pipeline.export import tensorrt
from pipeline.export.engine import write_engine
from pipeline.machine.gpu import find_gpu
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.candidates import load_candidates
from pipeline.records.engines import Engine, Engines, Profile, save_engine, save_engines
from pipeline.runners.engine_on_gpu import measure, why_not_measured
from pipeline.settings.export import BuildTensorrt
from pipeline.settings.serving import Serving

_log = logging.getLogger(__name__)


def build_tensorrt(config: BuildTensorrt, *, data: Path, candidates: Path, serving: Serving, out: Path) -> Metrics:
    """Build an engine for each of `config.candidates`, for batches of 1 to `serving.max_batch_size`.

    On a GPU each engine is also timed and compared with ONNX Runtime on validation images of `data`; without one it is
    said that neither was done. Returns ``<candidate>_build_seconds``, ``_plan_bytes``, ``_int8_layers`` and what was
    measured. Raises `Skipped` where no builder can run or it is off, and `ModelError` naming the node that a builder
    refuses.
    """
    gpu = find_gpu()
    builder, reason = tensorrt.choose(config.builder, gpu)
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
    not_measured = why_not_measured(gpu)
    built: list[Engine] = []
    for candidate in wanted:
        report("build_tensorrt", done=len(built), total=len(wanted))
        engine = write_engine(builder, candidate, candidates, profile, gpu, out)
        on_gpu = None if not_measured else measure(engine, out, candidates / candidate.file, validation)
        built.append(engine.model_copy(update={"on_gpu": on_gpu, "not_measured": not_measured}))
        save_engine(out, built[-1])
    report("build_tensorrt", done=len(built), total=len(wanted))
    if not_measured:
        _log.warning("the engines were not run: %s", not_measured)
    save_engines(out, Engines(engines=tuple(built)))
    return engine_metrics(built)
