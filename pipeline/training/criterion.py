"""What a training lowers: cross-entropy, or a loss between student and teacher.

A loss may have parameters, such as a projection or a temperature that is learned. They are learned beside the network,
alike in all processes, and serve for training alone: no checkpoint holds them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.settings.base import Component
from pipeline.training.distributed import ranks


class Criterion(nn.Module):
    """The loss of a training as one module, so that its parameters and buffers are moved, learned and saved with it."""

    def __init__(self, loss: Component | None, label_smoothing: float, device: torch.device) -> None:
        """Without `loss` it is the cross-entropy with smoothed labels."""
        super().__init__()
        self.loss = loss.build("losses") if loss else None  # one that is a module registers itself
        self.label_smoothing = label_smoothing
        self.to(device)
        ranks.copy_from_main_([*self.parameters(), *self.buffers()])

    def forward(self, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) where there is a teacher, (N,) int64 -> scalar, the mean over the batch."""
        if self.loss is None:
            return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        loss: Tensor = self.loss(logits.float(), teacher_logits, labels)
        return loss

    def average_gradients(self) -> None:
        """Replace each gradient by its mean over all processes; one that the loss did not use counts as zero."""
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in learned:
            unused = parameter.grad is None
            parameter.grad = torch.zeros_like(parameter) if unused else parameter.grad.contiguous()  # type: ignore[union-attr]
        ranks.mean_(parameter.grad for parameter in learned if parameter.grad is not None)
