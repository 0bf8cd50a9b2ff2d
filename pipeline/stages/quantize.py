"""`quantize`: the pruned student in int8, once for each target, with the proof that it is faster here.

Out: ``<target>/model.onnx`` for each target, ``model.json`` and ``quantization.json``. That one says first which candidate
to serve, int8 or its float original, and on which CPUs int8 answers as it should; see `pipeline.compression.quantization.proof` and
`pipeline.compression.quantization.saturation`.

With ``quantize.fit.epochs`` the student is also trained on while it rounds as its integer graph does (see
`fake_quant`) and quantized again from there. Training is not assumed to help: it is kept only where it is better
on the validation split by more than chance, and ``quantization.json`` says so. What was trained stays in ``qat/`` either way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from pipeline.compression.quantization import fake_quant, quant_plan
from pipeline.compression.quantization.proof import Proof, prove
from pipeline.compression.quantization.saturation import Saturation, without_vnni
from pipeline.data.shards import Split, load_manifest, open_split
from pipeline.errors import ModelError
from pipeline.evaluation.statistics import mcnemar
from pipeline.export import onnx_graph
from pipeline.files import sha256
from pipeline.models.checkpoint import WEIGHTS_FILE, load, save
from pipeline.models.spec import SPEC_FILE, ModelSpec, load_spec
from pipeline.progress.events import report
from pipeline.protocols import Metrics, Quantizer
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.settings.compression import Quantize
from pipeline.settings.training import Distributed, Fit
from pipeline.training.fit import check_same_task, train_job
from pipeline.training.job import TrainingJob

QUANTIZATION_FILE = "quantization.json"
QAT = "qat"
"""Directory of the checkpoint that was trained while it rounded."""
FLOAT: Literal["pruned"] = "pruned"
"""The candidate that is int8's float original."""
SATURATION_IMAGES = 256
"""Validation images, at most, that are answered with and without 16-bit sums: 2 to 8 seconds for networks of 1 to 10 MMACs."""
CHANCE = 0.05
"""Training is kept where McNemar's test gives its gain at most this probability of being luck."""
_EVALUATION_BATCH = 100
_log = logging.getLogger(__name__)


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
    judged = "cpu" if "cpu" in config.targets else config.targets[0]  # what is trained for and measured
    proof: Proof | None = None
    valid: Saturation | None = None
    trained: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        files = {"ptq": Path(directory) / "ptq"}
        counted = {"ptq": _write(spec, network, quantizer, config.targets, images, files["ptq"], lineage)}
        kept = "ptq"
        if config.fit.epochs:
            float_file, int8_file = (files["ptq"] / form / "model.onnx" for form in ("float", judged))
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
                hold_zeros=any(step.zeros for step in spec.pruning),
                fake_quant=quant_plan.plan(spec, network, float_file, int8_file, images),
            )
            trained = {"training": dict(train_job(job, distributed))}
            files[QAT] = Path(directory) / QAT
            counted[QAT] = _write(*load(job.out), quantizer, config.targets, images, files[QAT], lineage | _of(job.out))
            trained |= _compare({name: made / judged / "model.onnx" for name, made in files.items()}, data)
            kept = trained["kept"]
        for target in config.targets:
            shutil.copytree(files[kept] / target, out / target)
        if "cpu" in config.targets:
            proof = prove(files[kept] / "float" / "model.onnx", out / "cpu" / "model.onnx", images)
            valid = _validity(out / "cpu" / "model.onnx", data)
    record = {
        **(_outcome(proof, valid) if proof and valid else {}),
        "quantizer": config.quantizer.model_dump(),
        "calibration": calibration,
        "targets": counted[kept],
        **({"training": trained} if trained else {}),
    }
    shutil.copy2(pruned / SPEC_FILE, out / SPEC_FILE)
    (out / QUANTIZATION_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return _metrics(counted[kept], proof, valid, trained)


def _validity(int8_file: Path, data: Path) -> Saturation:
    """Find out where `int8_file` answers as it should, on validation images, and write that into its metadata."""
    validation = open_split(data, "validation")
    count = min(SATURATION_IMAGES, len(validation))
    valid = without_vnni(int8_file, validation.slice(0, count), validation.labels[:count])
    model = onnx.load(int8_file)
    onnx_graph.annotate(model, {"valid_on": valid.valid_on, "needs_cpu_flags": json.dumps(valid.needs)})
    onnx.save(model, int8_file)
    return valid


def _outcome(proof: Proof, valid: Saturation) -> dict[str, Any]:
    """Return what was found out of the cpu form, the conclusions first; say what speaks against it."""
    if not proof.faster:
        _log.warning("%s", proof.sentence)
    if valid.needs:
        _log.warning("%s", valid.sentence)
    return {
        "serve": "int8" if proof.faster else FLOAT,
        "valid_on": valid.valid_on,
        "proof": proof.model_dump(mode="json"),
        "without_vnni": valid.model_dump(mode="json", exclude={"valid_on"}),
    }


def _write(
    spec: ModelSpec,
    network: nn.Module,
    quantizer: Quantizer,
    targets: tuple[str, ...],
    images: NDArray[np.uint8],
    directory: Path,
    metadata: Mapping[str, str],
) -> dict[str, Metrics]:
    """Write `network` as ``float/model.onnx`` and in the form of each target into `directory`; return what was counted."""
    float_file = directory / "float" / "model.onnx"
    float_file.parent.mkdir(parents=True)
    onnx_graph.export(spec, network, float_file, metadata=metadata)
    counted: dict[str, Metrics] = {}
    for done, target in enumerate(targets):
        report("quantize", done=done, total=len(targets))
        (directory / target).mkdir()
        counted[target] = quantizer(float_file, images, directory / target / "model.onnx", target)
    report("quantize", done=len(targets), total=len(targets))
    return counted


def _of(trained: Path) -> dict[str, str]:
    """Return what the float graph of a checkpoint that was trained while it rounded must say of it."""
    ranges = json.loads((trained / fake_quant.RANGES_FILE).read_text(encoding="utf-8"))
    return {"trained_sha256": sha256(trained / WEIGHTS_FILE), quant_plan.RANGES_KEY: json.dumps(ranges)}


def _compare(files: Mapping[str, Path], data: Path) -> dict[str, Any]:
    """Return the accuracy of both graphs on the validation split, which to keep, and how likely a mere chance is.

    A gain of a few images does not carry over to the next images: with so little to tell them apart, the simpler stays.
    """
    validation = open_split(data, "validation")
    right = {name: answered_right(file, validation) for name, file in files.items()}
    accuracies = {name: float(answers.mean()) for name, answers in right.items()}
    chance = mcnemar(right["ptq"], right[QAT])
    kept = QAT if accuracies[QAT] > accuracies["ptq"] and chance <= CHANCE else "ptq"
    if kept == "ptq":
        _log.warning(
            "training with quantization did not help: %.4f on the validation split against %.4f without (p = %.2g, at "
            "most %g is asked for); what was not trained is kept",
            accuracies[QAT], accuracies["ptq"], chance, CHANCE,
        )  # fmt: skip
    return {"kept": kept, "validation_accuracy": accuracies, "p": chance}


def answered_right(file: Path, split: Split) -> NDArray[np.bool_]:
    """Return which images of `split` the ONNX `file` answers rightly: (images,)."""
    runner = OnnxRunner(file)
    right = np.empty(len(split), np.bool_)
    for start in range(0, len(split), _EVALUATION_BATCH):
        batch = slice(start, start + _EVALUATION_BATCH)
        logits = runner({"image": split.slice(batch.start, batch.stop)})["logits"]
        right[batch] = logits.argmax(axis=1) == split.labels[batch]
    runner.close()
    return right


def calibration_images(
    data: Path, count: int, shape: tuple[int, int, int], seed: int
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return `count` training images (count, C, H, W), each class in its share, and what tells this set from others.

    Raises `ModelError` where there are too few, or they are not of `shape`.
    """
    split = open_split(data, "train")
    if count > len(split):
        raise ModelError(
            f"quantize.calibration_images is {count}, but {data} has {len(split)} training images: set at most that"
        )
    chosen = np.sort(_stratified(split.labels, count, np.random.default_rng(seed)))
    images = split.batch(chosen)
    if images.shape[1:] != shape:
        raise ModelError(
            f"{data} has images of {images.shape[1:]}, the model takes {shape}: they are not of one data set"
        )
    fingerprint = hashlib.sha256(images.tobytes()).hexdigest()
    classes = np.bincount(split.labels[chosen])
    return images, {"images": count, "sha256": fingerprint, "per_class": classes.tolist(), "seed": seed}


def _stratified(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` indices into `labels`, drawn without replacement, each class as often as its share asks for."""
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = np.flatnonzero(shuffled == label)
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return order[np.argsort(place, kind="stable")[:count]]


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
        metrics["qat_gain"] = accuracies[QAT] - accuracies["ptq"]
        metrics["qat_p"] = trained["p"]
        metrics["qat_kept"] = float(trained["kept"] == QAT)
        metrics["qat_seconds"] = trained["training"]["seconds"]
    return metrics
