"""`quantize`: the pruned student in int8, once for each target, with the proof that it is faster here.

Out: ``<target>/model.onnx`` for each target, ``model.json`` and ``quantization.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import cpu, onnx_graph
from pipeline.checkpoint import SPEC_FILE, WEIGHTS_FILE, load, sha256
from pipeline.config import Quantize
from pipeline.data import open_split
from pipeline.errors import ModelError
from pipeline.progress import report
from pipeline.runners import OnnxRunner
from pipeline.timing import time_runners
from pipeline.types import Metrics, Quantizer

QUANTIZATION_FILE = "quantization.json"
BATCHES = (1, 64)
SECONDS = 0.3
"""Least time of each timing."""
_log = logging.getLogger(__name__)


def quantize(config: Quantize, *, data: Path, pruned: Path, seed: int, out: Path) -> Metrics:
    """Quantize the checkpoint in `pruned`, calibrated on training images of `data`.

    Returns, for each target, what its quantizer counted, and for cpu the speed against float on one thread of this
    machine. Raises `ModelError`, `DataError` or `SettingsError`.
    """
    spec, network = load(pruned)
    images, calibration = calibration_images(data, config.calibration_images, spec.image_shape, seed)
    quantizer: Quantizer = config.quantizer.build("quantizers")
    shutil.copy2(pruned / SPEC_FILE, out / SPEC_FILE)
    counted: dict[str, Metrics] = {}
    timing: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        float_file = Path(scratch) / "float" / "model.onnx"
        float_file.parent.mkdir()
        onnx_graph.export(spec, network, float_file, metadata={"weights_sha256": sha256(pruned / WEIGHTS_FILE)})
        for done, target in enumerate(config.targets):
            report("quantize", done=done, total=len(config.targets))
            (out / target).mkdir()
            counted[target] = quantizer(float_file, images, out / target / "model.onnx", target)
        if "cpu" in config.targets:
            timing = prove(float_file, out / "cpu" / "model.onnx", images)
    report("quantize", done=len(config.targets), total=len(config.targets))
    record = {
        "quantizer": config.quantizer.model_dump(),
        "calibration": calibration,
        "targets": counted,
        "timing": timing,
        "cpu": cpu.describe().model_dump(),
    }
    (out / QUANTIZATION_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return _metrics(counted, timing)


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


def prove(float_file: Path, int8_file: Path, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Time int8 against float, in turns, on one thread of this machine; images/s by batch size, and their ratio.

    It is the thread's own CPU time that counts, so that other tasks on the machine disturb little.
    """
    runners = {"float": OnnxRunner(float_file), "int8": OnnxRunner(int8_file)}
    timing: dict[str, Any] = {}
    for batch in BATCHES:
        measured = time_runners(runners, images, batch, SECONDS, time.thread_time)
        speeds = {name: offline.images_per_second for name, offline in measured.items()}
        timing[f"batch_{batch}"] = {**speeds, "speedup": speeds["int8"] / speeds["float"]}
    slow = [batch for batch, measured in timing.items() if measured["speedup"] <= 1.0]
    timing["int8_is_faster"] = not slow
    if slow:
        _log.warning(
            "int8 is not faster than float on this machine (%s): %s. The gate measures both and takes what pays.",
            ", ".join(slow), cpu.describe().model,
        )  # fmt: skip
    answers = {name: runner({"image": images})["logits"].argmax(axis=1) for name, runner in runners.items()}
    timing["agreement"] = float((answers["float"] == answers["int8"]).mean())
    for runner in runners.values():
        runner.close()
    return timing


def _metrics(counted: dict[str, Metrics], timing: dict[str, Any]) -> Metrics:
    metrics = {f"{target}_{name}": value for target, found in counted.items() for name, value in found.items()}
    for batch in BATCHES if timing else ():
        metrics[f"int8_speedup_batch_{batch}"] = timing[f"batch_{batch}"]["speedup"]
        metrics[f"int8_images_per_second_batch_{batch}"] = timing[f"batch_{batch}"]["int8"]
    if timing:
        metrics["int8_agreement"] = timing["agreement"]
    return metrics
