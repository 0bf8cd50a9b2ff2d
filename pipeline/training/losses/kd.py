"""Knowledge distillation with softened logits.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (https://arxiv.org/abs/1503.02531), section 2:
``alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * CE(student, labels)``.
The factor T^2 keeps the size of the soft gradient the same when T changes.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F


class KD(nn.Module):
    """Soft targets from a teacher beside hard labels.

    Args:
        temperature: T, above 0; higher shows more of what the teacher thinks of the wrong classes.
        alpha: weight of the soft part, 0 (labels alone) to 1 (teacher alone).
    """

    def __init__(
        self,
        temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 4.0,
        alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.alpha = alpha

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """(N, C) float, (N, C) float, (N,) int64 -> scalar; the mean over the batch."""
        student = F.log_softmax(student_logits.float() / self.temperature, dim=1)
        teacher = F.log_softmax(teacher_logits.float() / self.temperature, dim=1)
        soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * self.temperature**2
        hard = F.cross_entropy(student_logits.float(), labels)
        return self.alpha * soft + (1.0 - self.alpha) * hard


COMPONENT = KD
