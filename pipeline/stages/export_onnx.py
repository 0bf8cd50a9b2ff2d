"""`export_onnx`: every candidate as an ONNX file, each compared with the PyTorch model that it was made from.

Out: ``candidates.json`` and, for each candidate, ``<candidate>/model.onnx`` and ``<candidate>/model.json``; with
``mobile`` also ``<candidate>/model.pte`` for student and pruned.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.data.shards import MANIFEST_FILE, load_manifest, open_split
from pipeline.errors import ModelError
from pipeline.export import onnx_graph
from pipeline.export.widening import widened
from pipeline.files import sha256
from pipeline.models import size as sizes
from pipeline.models.checkpoint import WEIGHTS_FILE, load
from pipeline.models.spec import SPEC_FILE
from pipeline.progress.events import report
from pipeline.protocols import Metrics, Runner
from pipeline.records.candidates import Candidate, Candidates, Mobile, Parity, save
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.parity import compare
from pipeline.runners.runner import TorchRunner
from pipeline.settings.export import ExportOnnx
from pipeline.stages.quantize import FLOAT, QUANTIZATION_FILE

BATCHES = (1, 7, 64)
"""Batch sizes at which every graph must run."""
Source = Literal["teacher", "student", "pruned"]
FOR_PHONES: tuple[Source, ...] = ("student", "pruned")


def export_onnx(
    config: ExportOnnx, *, data: Path, teacher: Path, student: Path, pruned: Path, quantized: Path, out: Path
) -> Metrics:
    """Write teacher, student, pruned, int8 (for CPUs) and int8_tensorrt, as far as `quantized` holds them.

    Returns ``<candidate>_parity_max_difference`` and its like. Raises `ModelError` where `quantized` is not whole, a graph
    does not run, or a float one differs from PyTorch by more than `config.max_difference`, and `SettingsError` where the
    package that `config.mobile` needs is missing.
    """
    if config.mobile != "off":
        from pipeline.export import executorch

        executorch.check_installed()
    if not (quantized / QUANTIZATION_FILE).exists():
        raise ModelError(
            f"{quantized} is not what quantize leaves when it has ended well: {QUANTIZATION_FILE} is missing. "
            f"Run `flyweight quantize` again."
        )
    images = _parity_images(data, config.parity_images)
    sources: dict[Source, Path] = {"teacher": teacher, "student": student, "pruned": pruned}
    int8 = {name: quantized / target for name, target in (("int8", "cpu"), ("int8_tensorrt", "tensorrt"))}
    int8 = {name: directory for name, directory in int8.items() if (directory / "model.onnx").exists()}
    candidates: list[Candidate] = []
    phones: list[Mobile] = []
    total = len(sources) + len(int8)
    for source, checkpoint in sources.items():
        report("export_onnx", done=len(candidates), total=total)
        file = _export(checkpoint, source, config.opset, data, out)
        candidates.append(_describe(source, source, file, checkpoint, images))
        _hold_to_limit(f"candidate {source!r}", candidates[-1].parity, config.max_difference)
        if config.mobile != "off" and source in FOR_PHONES:
            phones.append(_export_for_phones(checkpoint, source, data, images, out))
            _hold_to_limit(f"the mobile form of {source!r}", phones[-1].parity, config.max_difference)
    for name, directory in int8.items():
        report("export_onnx", done=len(candidates), total=total)
        file = _copy_int8(directory, name, pruned, data, out)
        described = _describe(name, FLOAT, file, _float_source(file, pruned, quantized), images)
        candidates.append(described.model_copy(update={"gives_way_to": _better(name, quantized)}))
    report("export_onnx", done=total, total=total)
    save(out, Candidates(candidates=tuple(candidates), labels=load(teacher)[0].labels, mobile=tuple(phones)))
    metrics = {key: value for candidate in candidates for key, value in _metrics(candidate).items()}
    return metrics | {key: value for one in phones for key, value in _mobile_metrics(one).items()}


def _parity_images(data: Path, count: int) -> NDArray[np.uint8]:
    split = open_split(data, "validation")
    if count > len(split):
        raise ModelError(
            f"export_onnx.parity_images is {count}, but {data} has {len(split)} validation images: set at most that"
        )
    return np.ascontiguousarray(split.slice(0, count))


def _export(checkpoint: Path, name: str, opset: int, data: Path, out: Path) -> Path:
    """Write a float candidate and its spec; return the ONNX file."""
    spec, network = load(checkpoint)
    file = out / name / "model.onnx"
    file.parent.mkdir()
    onnx_graph.export(spec, network, file, opset, {**_lineage(checkpoint, data), "precision": "float32"})
    shutil.copy2(checkpoint / SPEC_FILE, file.parent / SPEC_FILE)
    return file


def _export_for_phones(checkpoint: Path, name: str, data: Path, images: NDArray[np.uint8], out: Path) -> Mobile:
    """Write a float candidate as an ExecuTorch program beside its ONNX file and compare it with PyTorch."""
    from pipeline.export import executorch

    spec, network = load(checkpoint)
    file = out / name / "model.pte"
    left = executorch.export(spec, network, file, {**_lineage(checkpoint, data), "precision": "float32"})
    runner, reference = executorch.MobileRunner(file), TorchRunner(checkpoint)
    try:
        _try_batches(runner, f"{name} for phones", images, (1, 7, executorch.MAX_BATCH))
        parity = compare(runner, reference, images, executorch.MAX_BATCH)
    finally:
        runner.close()
        reference.close()
    return Mobile(
        candidate=name,
        format="executorch",
        file=f"{name}/model.pte",
        sha256=sha256(file),
        size_bytes=file.stat().st_size,
        left_behind=left,
        parity=parity,
    )


def _copy_int8(directory: Path, name: str, pruned: Path, data: Path, out: Path) -> Path:
    """Copy what `quantize` wrote, its lineage added to the metadata; return the ONNX file. Raises `ModelError`."""
    lineage = _lineage(pruned, data)
    model = onnx.load(directory / "model.onnx")
    made_from = {entry.key: entry.value for entry in model.metadata_props}.get("weights_sha256")
    if made_from != lineage["weights_sha256"]:
        raise ModelError(
            f"{directory / 'model.onnx'} was quantized from other weights ({made_from}) than those of {pruned}: "
            f"give export_onnx the 'prune' run that 'quantize' took"
        )
    onnx_graph.annotate(model, lineage)
    file = out / name / "model.onnx"
    file.parent.mkdir()
    onnx.save(model, file)
    shutil.copy2(pruned / SPEC_FILE, file.parent / SPEC_FILE)
    return file


def _float_source(file: Path, pruned: Path, quantized: Path) -> Path:
    """Return the checkpoint whose weights a quantized file rounds: `pruned`, or what `quantize` trained on from there."""
    trained = _says(file).get("trained_sha256")
    if trained is None:
        return pruned
    checkpoint = quantized / "qat"
    if (found := sha256(checkpoint / WEIGHTS_FILE)) != trained:
        raise ModelError(f"{file} was quantized from weights {trained}, {checkpoint} has {found}: run `quantize` again")
    return checkpoint


def _better(name: str, quantized: Path) -> str | None:
    """Return the candidate that `quantize` said to serve in the place of int8, if it did."""
    serve: str | None = json.loads((quantized / QUANTIZATION_FILE).read_text(encoding="utf-8")).get("serve")
    return serve if name == "int8" and serve != name else None


def _says(file: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


def _lineage(checkpoint: Path, data: Path) -> dict[str, str]:
    """What the files were made from. The manifest holds the hash of every shard, so its own is that of all the data."""
    return {
        "weights_sha256": sha256(checkpoint / WEIGHTS_FILE),
        "dataset": load_manifest(data).name,
        "data_sha256": sha256(data / MANIFEST_FILE),
    }


def _describe(name: str, source: Source, file: Path, checkpoint: Path, images: NDArray[np.uint8]) -> Candidate:
    """Run the candidate in `file` beside the PyTorch model in `checkpoint` and write down what it is."""
    spec, network = load(checkpoint)
    precision = _says(file).get("precision", "int8")
    with tempfile.TemporaryDirectory() as scratch:
        runner, reference = OnnxRunner(_runnable(file, precision, Path(scratch))), TorchRunner(checkpoint)
    try:
        _try_batches(runner, name, images, BATCHES)
        parity = compare(runner, reference, images)
    finally:
        runner.close()
        reference.close()
    return Candidate(
        name=name,
        file=f"{name}/model.onnx",
        sha256=sha256(file),
        size_bytes=file.stat().st_size,
        parameters=sizes.parameters(network),
        macs=sizes.macs(network, spec.image_shape),
        precision=precision,
        target={"int8": "cpu", "int8_tensorrt": "tensorrt"}.get(name, "any"),
        source=source,
        parity=parity,
    )


def _runnable(file: Path, precision: str, scratch: Path) -> Path:
    """Return `file`, or, where ONNX Runtime has no kernels for it, the same arithmetic in a file that it can run."""
    if precision != "bfloat16":
        return file
    onnx.save(widened(onnx.load(file)), scratch / "widened.onnx")
    return scratch / "widened.onnx"


def _try_batches(runner: Runner, name: str, images: NDArray[np.uint8], batches: Sequence[int]) -> None:
    """Raise `ModelError` unless the graph takes every batch size, in whatever order."""
    for batch in batches:
        inputs = images[np.arange(batch) % len(images)]
        try:
            logits = runner({"image": inputs})["logits"]
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            raise ModelError(f"candidate {name!r} does not take a batch of {batch}: {error}") from error
        if logits.shape[0] != batch or not np.isfinite(logits).all():
            raise ModelError(f"candidate {name!r} answers a batch of {batch} with {logits.shape} or with NaN")


def _hold_to_limit(what: str, parity: Parity, limit: float) -> None:
    if not parity.max_difference <= limit:
        raise ModelError(
            f"{what} differs from PyTorch by up to {parity.max_difference:.3g} on {parity.images} validation images; "
            f"export_onnx.max_difference allows {limit:g}. Try another export_onnx.opset, or raise the limit if "
            f"{parity.changed_predictions} changed predictions are acceptable."
        )


def _metrics(candidate: Candidate) -> dict[str, float]:
    name, parity = candidate.name, candidate.parity
    return {
        f"{name}_parity_max_difference": parity.max_difference,
        f"{name}_parity_mean_difference": parity.mean_difference,
        f"{name}_changed_predictions": float(parity.changed_predictions),
        f"{name}_size_bytes": float(candidate.size_bytes),
        f"{name}_parameters": float(candidate.parameters),
        f"{name}_macs": float(candidate.macs),
    }


def _mobile_metrics(one: Mobile) -> dict[str, float]:
    name = f"{one.candidate}_mobile"
    return {
        f"{name}_parity_max_difference": one.parity.max_difference,
        f"{name}_parity_mean_difference": one.parity.mean_difference,
        f"{name}_changed_predictions": float(one.parity.changed_predictions),
        f"{name}_size_bytes": float(one.size_bytes),
    }
