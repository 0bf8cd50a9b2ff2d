"""The teacher of a training: its logits for what the student sees, calculated once where every epoch shows the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.models import checkpoint
from pipeline.progress import events
from pipeline.training import teacher_logits
from pipeline.training.batches import Batch, Batches
from pipeline.training.distributed import ranks
from pipeline.training.validation import EVALUATION_BATCH

_REMEMBERED_BYTES = 1 << 28  # of logits; for a data set with more of them the teacher runs again in each step


class Teacher:
    """A checkpoint that answers for the student to learn from; it does not learn itself."""

    def __init__(self, directory: Path, device: torch.device, bf16: bool) -> None:
        """`bf16` is whether it multiplies in bfloat16, as the student does."""
        network = checkpoint.load(directory)[1].requires_grad_(False)
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.directory, self.device, self.bf16 = directory, device, bf16
        self.remembered: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Return (N, classes) float32: the logits for the very view that the student sees."""
        return self._logits(batch.view) if self.remembered is None else self.remembered[batch.rows]

    def precompute(self, batches: Batches, data: Path, what: str) -> None:
        """Where every epoch shows the same views, calculate the logits of each image once, and remember them.

        Each process takes its share of the images; afterwards all know all of the logits, and so does the next training
        with this teacher on `data`. `what` is what progress calls the training.
        """
        images, classes = len(batches.split), len(batches.spec.labels)
        if not batches.always_alike or 4 * images * classes > _REMEMBERED_BYTES:
            return
        precision = f"{self.device.type} {'bf16' if self.bf16 else 'float32'}"
        file = teacher_logits.file(self.directory, data, precision)
        known = ranks.total(torch.tensor(float(file.exists()), device=self.device))
        if known == ranks.world():  # one that does not see the file must not be left alone with the work
            self.remembered = teacher_logits.load(file).to(self.device)
            return
        logits = torch.zeros(images, classes, device=self.device)
        starts = range(ranks.rank() * EVALUATION_BATCH, images, ranks.world() * EVALUATION_BATCH)
        for place, start in enumerate(starts):
            rows = np.arange(start, min(start + EVALUATION_BATCH, images))
            logits[rows] = self._logits(batches.view(rows, epoch=0))
            if ranks.is_main():
                events.report(f"{what}: the teacher's logits", done=place + 1, total=len(starts))
        self.remembered = ranks.total(logits)
        if ranks.is_main():
            teacher_logits.save(file, self.remembered)

    @torch.no_grad()
    def _logits(self, view: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.network(view).float()
        return logits
