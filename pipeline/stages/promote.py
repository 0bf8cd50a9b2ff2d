"""Put the winner into Triton's repository without dropping a request.

Reads the verdict, registers the winner's file (the registered version is Triton's version), and hands over to
`pipeline.serving.promotion.promote`. Leaves promotion.json, golden.safetensors (inputs and the answers that were demanded) and
a copy of the ledger.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pipeline.errors import PromotionError
from pipeline.files import sha256, write_json
from pipeline.models.spec import load_spec
from pipeline.protocols import Metrics, Registry
from pipeline.records.candidates import Candidate, load_candidates
from pipeline.records.evaluation import GOLDEN_IMAGES_FILE
from pipeline.records.promotion import PROMOTION_FILE
from pipeline.records.verdict import Verdict, load_verdict
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.pull import VERDICT
from pipeline.serving.triton.artifact import golden_answers
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.control import Control
from pipeline.serving.triton.golden import GOLDEN_FILE, save_golden
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.serving import Promote, Serving


def promote(
    config: Promote,
    *,
    candidates: Path,
    evaluation: Path,
    serving: Serving,
    registry: Registry,
    out: Path,
    control: Control | None = None,
) -> Metrics:
    """Promote the winner of the verdict.

    Args:
        config: deadlines, limits and number of golden images.
        candidates: directory of candidates.json and the ONNX files.
        evaluation: directory of verdict.json and golden.safetensors.
        serving: the served model's name and settings.
        registry: gives the version and moves the aliases.
        out: empty directory for the results.
        control: the server; the one at `places.triton_grpc()` if None.

    Raises:
        PromotionError: the verdict names no winner, or the winner was refused on its way; the champion serves on.
        TritonError: Triton cannot be reached.
    """
    verdict = load_verdict(evaluation)
    candidate = _winner(candidates, verdict)
    file = candidates / candidate.file
    if sha256(file) != candidate.sha256:
        raise PromotionError(
            f"{file} has SHA-256 {sha256(file)}, but candidates.json says {candidate.sha256}: the file changed after it "
            f"was exported. Run `flyweight export_onnx` again"
        )
    artifact = Artifact(file, load_spec(file.parent), candidate.sha256, candidate.name)
    images = _golden_images(evaluation, min(config.golden_images, serving.max_batch_size))
    golden = golden_answers(artifact, {artifact.spec.inputs[0].name: images}, serving.threads)
    save_golden(out / GOLDEN_FILE, golden)
    tags = {"candidate": candidate.name, "precision": candidate.precision, "source": candidate.source}
    tags[VERDICT] = verdict.verdict
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        server = control or stack.enter_context(Client())
        done = promote_artifact(serving, artifact, golden, registry, tags, server, config)
    seconds = time.perf_counter() - begin
    record = {**asdict(done), "candidate": candidate.name, "ledger": str(done.ledger), "seconds": round(seconds, 3)}
    write_json(out / PROMOTION_FILE, record)
    shutil.copyfile(done.ledger, out / "ledger.jsonl")
    return {"version": float(done.version), "reused": float(done.reused), "promotion_seconds": seconds}


def _winner(candidates: Path, verdict: Verdict) -> Candidate:
    """Return the candidate that the verdict names. Raises `PromotionError` where it names none."""
    if verdict.verdict != "PROMOTE" or verdict.winner is None:
        raise PromotionError(f"nothing is promoted, as the verdict is {verdict.verdict}: {verdict.sentence}")
    return load_candidates(candidates).named(verdict.winner)


def _golden_images(evaluation: Path, wanted: int) -> NDArray[np.uint8]:
    """Return the first `wanted` images that `evaluate` set aside. Raises `PromotionError`."""
    path = evaluation / GOLDEN_IMAGES_FILE
    if not path.is_file():
        raise PromotionError(f"{path} is missing: give the directory that `evaluate` wrote")
    return load_file(path)["images"][:wanted]
