"""Ask the live endpoint, as any client would, and compare it with the file that was promoted.

Test images go over gRPC to the model without a version; the same file answers them in this process. Leaves served.json.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.split import Split, open_split
from pipeline.errors import PromotionError
from pipeline.files import write_json
from pipeline.models.spec import load_spec
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.records.candidates import load_candidates
from pipeline.records.promotion import PROMOTION_FILE, SERVED_FILE
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.golden import TOLERANCE, difference
from pipeline.settings.serving import Serving, VerifyServed


def verify_served(
    config: VerifyServed,
    *,
    data: Path,
    candidates: Path,
    promotion: Path,
    serving: Serving,
    out: Path,
    client: Client | None = None,
) -> Metrics:
    """Hold the live endpoint to the promoted file: hash, version, answers; and measure its accuracy.

    Args:
        config: how many test images.
        data: prepared data.
        candidates: directory of candidates.json and the ONNX files.
        promotion: directory of promotion.json.
        serving: the served model's name and settings.
        out: empty directory for served.json.
        client: asks the server; one for `places.triton_grpc()` if None.

    Raises:
        PromotionError: the endpoint serves other bytes, another version or other answers.
        TritonError: Triton cannot be reached.
    """
    promoted = json.loads((promotion / PROMOTION_FILE).read_text(encoding="utf-8"))
    candidate = load_candidates(candidates).named(promoted["candidate"])
    name = load_spec((candidates / candidate.file).parent).inputs[0].name
    split = open_split(data, "test")
    count = min(config.images, len(split))
    asker = client or Client()
    sha256, version = asker.attested(serving.model)
    served = _ask(asker, serving, name, split, count)
    asker.close()
    expected = _expect(candidates / candidate.file, serving, name, split, count)
    metrics = {
        "images": float(count),
        "accuracy": float((served.argmax(axis=1) == split.labels[:count]).mean()),
        "agreement": float((served.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "bit_equal": float((served == expected).all(axis=1).mean()),
        "max_difference": float(np.abs(served - expected).max()),
    }
    record = {"model": serving.model, "version": version, "sha256": sha256, "tolerance": TOLERANCE, **metrics}
    write_json(out / SERVED_FILE, record)
    _check(record, promoted, difference({"logits": expected}, {"logits": served}))
    return metrics


def _ask(client: Client, serving: Serving, name: str, split: Split, count: int) -> NDArray[np.float32]:
    """Return the served logits (count, classes) of the first `count` images, a full batch per request."""
    found = answer(
        lambda inputs: client.infer(serving.model, inputs).outputs,
        {name: split.slice(0, count)},
        serving.max_batch_size,
        lambda done: report("served images", done=done, total=count),
    )
    return next(iter(found.values()))


def _expect(file: Path, serving: Serving, name: str, split: Split, count: int) -> NDArray[np.float32]:
    """Return what the file answers in this process, in the same batches."""
    with contextlib.closing(OnnxRunner(file, serving.threads)) as runner:
        return next(iter(answer(runner, {name: split.slice(0, count)}, serving.max_batch_size).values()))


def _check(record: dict[str, Any], promoted: dict[str, Any], trouble: str | None) -> None:
    """Raise `PromotionError` unless what answers is what was promoted."""
    for what in ("sha256", "version"):
        if record[what] != promoted[what]:
            raise PromotionError(
                f"{record['model']} answers with {what} {record[what]}, but {promoted[what]} was promoted: something else "
                f"was promoted since, or rolled back. `flyweight promote` puts the verdict's winner back"
            )
    if trouble is not None:
        raise PromotionError(
            f"{record['model']} version {record['version']} does not answer as its file does on the first "
            f"{record['images']:g} test images: {trouble}"
        )
