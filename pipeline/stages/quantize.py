"""`quantize`: the pruned student in int8, once per target, with the proof that it is faster here.

Out: ``<target>/model.onnx`` for each target, ``model.json`` and ``quantization.json``. That one says first which candidate
to serve, int8 or its float original, and on which CPUs int8 answers as it should; see `pipeline.compression.quantization.proof` and
`pipeline.compression.quantization.saturation`.

With ``quantize.fit.epochs`` the student is also trained on while it rounds as its integer graph does (see
`fake_quant`) and quantized again from there. Training is not assumed to help: it is kept only where it is better
on the validation split by more than chance, and ``quantization.json`` says so. What was trained stays in ``qat/`` either way.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.compression.pruning.sparsity import KeepSparsity
from pipeline.compression.quantization import fake_quant, quant_plan
from pipeline.compression.quantization.calibration_set import calibration_images
from pipeline.compression.quantization.choice import PTQ, compare
from pipeline.compression.quantization.fake_quant import FakeQuant, Rounding
from pipeline.compression.quantization.forms import outcome, trained_from, validity, write_forms
from pipeline.compression.quantization.proof import Proof, prove
from pipeline.compression.quantization.saturation import Saturation
from pipeline.data.manifest import load_manifest
from pipeline.files import sha256
from pipeline.models.checkpoint import WEIGHTS_FILE, load, save
from pipeline.models.spec import SPEC_FILE, ModelSpec, load_spec
from pipeline.protocols import Metrics, Quantizer
from pipeline.records.quantization import QAT, QUANTIZATION_FILE
from pipeline.settings.compression import Quantize
from pipeline.settings.training import Distributed, Fit
from pipeline.training.fit import check_same_task, train_job
from pipeline.training.job import TrainingJob
from pipeline.training.rewrites import RewriteSpec, rewrite


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
    quantizer: Quantizer = config.build_quantizer()
    if config.fit.epochs:
        check_same_task("teacher", load_spec(teacher), load_manifest(data))
        spec, network = fake_quant.fold(spec, network)
    lineage = {"weights_sha256": sha256(pruned / WEIGHTS_FILE)}
    measured = "cpu" if "cpu" in config.targets else config.targets[0]  # what is trained for and measured
    proof: Proof | None = None
    valid: Saturation | None = None
    trained: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        files = {PTQ: Path(directory) / PTQ}
        counted = {PTQ: write_forms(spec, network, quantizer, config.targets, images, files[PTQ], lineage)}
        kept = PTQ
        if config.fit.epochs:
            float_file, int8_file = (files[PTQ] / form / "model.onnx" for form in ("float", measured))
            save(scratch / "folded", spec, network)
            job = TrainingJob(
                section="quantize.fit",
                what="quantize (training)",
                spec=spec,
                fit=Fit(**config.fit.model_dump()),
                data=data,
                seed=seed,
                scratch=scratch / QAT,
                out=out / QAT,
                strategy=distributed.strategy,
                start=scratch / "folded",
                teacher=teacher,
                loss=config.loss,
                rewrites=_rewrites(spec, quant_plan.plan(spec, network, float_file, int8_file, images)),
            )
            trained = {"training": dict(train_job(job, distributed))}
            files[QAT] = Path(directory) / QAT
            counted[QAT] = write_forms(
                *load(job.out), quantizer, config.targets, images, files[QAT], lineage | trained_from(job.out)
            )
            trained |= compare({name: made / measured / "model.onnx" for name, made in files.items()}, data)
            kept = trained["kept"]
        for target in config.targets:
            shutil.copytree(files[kept] / target, out / target)
        if "cpu" in config.targets:
            proof = prove(files[kept] / "float" / "model.onnx", out / "cpu" / "model.onnx", images)
            valid = validity(out / "cpu" / "model.onnx", data)
    record = {
        **(outcome(proof, valid) if proof and valid else {}),
        "quantizer": config.quantizer.model_dump(),
        "calibration": calibration,
        "targets": counted[kept],
        **({"training": trained} if trained else {}),
    }
    shutil.copy2(pruned / SPEC_FILE, out / SPEC_FILE)
    (out / QUANTIZATION_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return _metrics(counted[kept], proof, valid, trained)


def _rewrites(spec: ModelSpec, plan: FakeQuant) -> tuple[RewriteSpec, ...]:
    """Return what changes the network while it trains: rounding, and zeros that stay where pruning has set any."""
    rounding = rewrite(Rounding, plan=plan.model_dump(mode="json"))
    return (rounding, rewrite(KeepSparsity)) if any(step.zeros for step in spec.pruning) else (rounding,)


def _metrics(
    counted: Mapping[str, Metrics], proof: Proof | None, valid: Saturation | None, trained: Mapping[str, Any]
) -> Metrics:
    metrics = {f"{target}_{name}": value for target, found in counted.items() for name, value in found.items()}
    if proof:
        for batch, speed in proof.speed.items():
            metrics[f"int8_speedup_batch_{batch}"] = speed.ratio
            metrics[f"int8_images_per_second_batch_{batch}"] = speed.int8_images_per_second
        metrics["int8_agreement"] = proof.agreement
    if valid:
        metrics["int8_accuracy_without_vnni"] = valid.saturated_accuracy
        metrics["int8_changed_without_vnni"] = valid.changed
    if trained:
        accuracies = trained["validation_accuracy"]
        metrics |= {f"{name}_validation_accuracy": value for name, value in accuracies.items()}
        metrics["qat_gain"] = accuracies[QAT] - accuracies[PTQ]
        metrics["qat_p"] = trained["p"]
        metrics["qat_kept"] = float(trained["kept"] == QAT)
        metrics["qat_seconds"] = trained["training"]["seconds"]
    return metrics
