"""`quantize`: the pruned student in int8, once per target, with the proof of how fast it is here.

Out: ``<target>/model.onnx`` for each target, ``model.json`` and ``quantization.json``. That one says first which candidate
to serve, int8 or its float original, and on which CPUs int8 answers as it should; see `pipeline.compression.quantization.proof` and
`pipeline.compression.quantization.saturation`.

With ``quantize.fit.epochs`` the student is also trained on while it rounds as its integer graph does (see
`fake_quant`) and quantized again from there. Training is not assumed to help: it is kept only where it is better
on the validation split by more than chance, and ``quantization.json`` says so. What was trained stays in ``qat/`` either way.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.compression.quantization import fake_quant, quant_plan
from pipeline.compression.quantization.calibration_set import calibration_images
from pipeline.compression.quantization.choice import PTQ, compare, training_metrics
from pipeline.compression.quantization.cpu_form import examine
from pipeline.compression.quantization.fake_quant import FakeQuant, Rounding
from pipeline.compression.quantization.forms import trained_from, write_forms
from pipeline.data.manifest import load_manifest
from pipeline.files import sha256, write_json
from pipeline.models.checkpoint import WEIGHTS_FILE, load, save
from pipeline.models.spec import SPEC_FILE, ModelSpec, load_spec
from pipeline.protocols import Metrics
from pipeline.records.candidates import MODEL_FILE
from pipeline.records.quantization import QAT, QUANTIZATION_FILE
from pipeline.settings.compression import Quantize
from pipeline.settings.training import Distributed, Fit
from pipeline.training.fit import check_same_task, train_job
from pipeline.training.job import TrainingJob
from pipeline.training.rewrites import keep_sparsity, rewrite


def quantize(
    config: Quantize,
    *,
    data: Path,
    teacher: Path,
    pruned: Path,
    distributed: Distributed,
    seed: int,
    out: Path,
    scratch: Path,
) -> Metrics:
    """Quantize the checkpoint in `pruned`, calibrated on training images of `data`.

    Returns, for each target, what its quantizer counted, for cpu the speed against float on one thread of this machine,
    and, where it was also trained, the accuracy with and without. Raises `ModelError`, `DataError` or `SettingsError`.
    """
    spec, network = load(pruned)
    images, calibration = calibration_images(data, config.calibration_images, spec.image_shape, seed)
    write = partial(write_forms, config.build_quantizer(), config.targets, images)
    if config.fit.epochs:
        check_same_task("teacher", load_spec(teacher), load_manifest(data))
        spec, network = fake_quant.fold(spec, network)
    lineage = {"weights_sha256": sha256(pruned / WEIGHTS_FILE)}
    measured = "cpu" if "cpu" in config.targets else config.targets[0]  # what is trained for and measured
    training: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        kept = forms = write(spec, network, Path(directory) / PTQ, lineage)
        if config.fit.epochs:
            save(scratch / "folded", spec, network)
            plan = quant_plan.plan(spec, network, forms.file("float"), forms.file(measured), images)
            job = _rounding_job(
                config, spec, plan, data=data, teacher=teacher, start=scratch / "folded", out=out / QAT,
                scratch=scratch / QAT, strategy=distributed.strategy, seed=seed,
            )  # fmt: skip
            training = {"training": dict(train_job(job, distributed))}
            trained = write(*load(job.out), Path(directory) / QAT, lineage | trained_from(job.out))
            training |= compare({PTQ: forms.file(measured), QAT: trained.file(measured)}, data)
            kept = trained if training["kept"] == QAT else forms
        for target in config.targets:
            shutil.copytree(kept.directory / target, out / target)
        cpu = None
        if "cpu" in config.targets:
            cpu = examine(kept.file("float"), out / "cpu" / MODEL_FILE, images, data)
    record = {
        **(cpu.conclusions() if cpu else {}),
        "quantizer": config.quantizer.model_dump(),
        "calibration": calibration,
        "targets": kept.counted,
        **({"training": training} if training else {}),
    }
    shutil.copy2(pruned / SPEC_FILE, out / SPEC_FILE)
    write_json(out / QUANTIZATION_FILE, record)
    counted = {f"{target}_{name}": value for target, by in kept.counted.items() for name, value in by.items()}
    return {**counted, **(cpu.metrics() if cpu else {}), **(training_metrics(training) if training else {})}


def _rounding_job(config: Quantize, spec: ModelSpec, plan: FakeQuant, **where: Any) -> TrainingJob:
    """Return the job that trains a network on while it rounds as `plan` says; `where` is its data, places and seed."""
    return TrainingJob(
        section="quantize.fit",
        what="quantize (training)",
        spec=spec,
        fit=Fit(**config.fit.model_dump()),
        loss=config.loss,
        rewrites=(rewrite(Rounding, plan=plan.model_dump(mode="json")), *keep_sparsity(spec)),
        **where,
    )
