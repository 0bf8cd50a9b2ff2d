"""Unstructured: single weights become zero, wherever they are.

The smallest go first (Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
https://arxiv.org/abs/1506.02626). In several rounds the share of zeros rises by the cubic schedule of Zhu and Gupta, "To
prune, or not to prune", https://arxiv.org/abs/1710.01878: much while there is much to spare, little at the end.

The tensors keep their shapes. No runtime that Flyweight exports to skips the zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.spec import ModelSpec, PruningStep

_log = logging.getLogger(__name__)


class Unstructured:
    """Sets single weights of convolutions and linear layers to zero. This makes no model faster and no file smaller.

    Dense kernels of ONNX Runtime and TensorRT multiply by zero like by any number. It serves research, files that are
    compressed for transport, and runtimes with sparse kernels.

    Args:
        sparsity: share of the weights of convolutions and linear layers that are zero afterwards.
        importance: magnitude sets the smallest to zero; random any.
        scope: global compares the weights of all layers; local takes the same share of every layer.
        seed: draws the weights where importance is random.
    """

    def __init__(
        self,
        sparsity: Annotated[float, Field(gt=0.0, lt=1.0)],
        importance: Literal["magnitude", "random"] = "magnitude",
        scope: Literal["global", "local"] = "global",
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.sparsity = sparsity
        self.importance: Literal["magnitude", "random"] = importance
        self.scope: Literal["global", "local"] = scope
        self.seed = seed

    def rounds(self, count: int) -> list[Unstructured]:
        """Return `count` pruners; after the i-th the share of zeros is ``sparsity * (1 - (1 - i / count)**3)``."""
        shares = [self.sparsity * (1.0 - (1.0 - (place + 1) / count) ** 3) for place in range(count)]
        return [Unstructured(share, self.importance, self.scope, self.seed) for share in shares]

    @torch.no_grad()
    def __call__(self, spec: ModelSpec, network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> PruningStep:
        """Set weights of `network` to zero in place. Looks at no data.

        Raises `ModelError` where a layer would lose all of its weights, or where as many are zero already.
        """
        network.eval()
        weights = {
            name: layer.weight for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        }
        masks = self._masks(weights)
        emptied = [name for name, mask in masks.items() if bool(mask.all())]
        if emptied:
            raise ModelError(
                f"pruner.sparsity is {self.sparsity}: with scope {self.scope}, {', '.join(emptied)} of {spec.architecture} "
                f"would lose all weights; lower sparsity, or set pruner.scope to local"
            )
        before, total = _zeros(weights.values()), sum(weight.numel() for weight in weights.values())
        for name, mask in masks.items():
            weights[name].masked_fill_(mask, 0.0)
        after = _zeros(weights.values())
        if after == before:
            raise ModelError(
                f"nothing was pruned: pruner.sparsity is {self.sparsity}, and {before} of the {total} weights of "
                f"{spec.architecture} are zero already; raise sparsity above {before / total:.4f}"
            )
        _log.warning(
            "unstructured: %.1f %% of the weights are zero now. This brings no speed: the dense kernels of ONNX Runtime and "
            "TensorRT multiply by zero too; and the file stays as large",
            100.0 * after / total,
        )
        return PruningStep(
            method="unstructured",
            arguments={
                "sparsity": self.sparsity,
                "importance": self.importance,
                "scope": self.scope,
                "seed": self.seed,
            },
            zeros={name: zeros / weight.numel() for name, weight in weights.items() if (zeros := _zeros([weight]))},
        )

    def _masks(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return, for each layer, which of its weights shall be zero: those that are, then the least important."""
        chance = torch.Generator().manual_seed(self.seed)
        scores = {name: self._scores(weight, chance) for name, weight in weights.items()}
        compared = [list(scores)] if self.scope == "global" else [[name] for name in scores]
        masks: dict[str, Tensor] = {}
        for names in compared:
            flat = torch.cat([scores[name].flatten() for name in names])
            count = min(round(self.sparsity * flat.numel()), flat.numel() - 1)
            mask = torch.zeros_like(flat, dtype=torch.bool)
            mask[flat.argsort(stable=True)[:count]] = True
            parts = mask.split([scores[name].numel() for name in names])
            masks |= {name: part.view_as(scores[name]) for name, part in zip(names, parts, strict=True)}
        return masks

    def _scores(self, weight: Tensor, chance: torch.Generator) -> Tensor:
        """Return how much each weight counts; one that is zero already, least."""
        if self.importance == "magnitude":
            return weight.abs()
        return torch.rand(weight.shape, generator=chance).masked_fill_(weight == 0, -1.0)


def _zeros(weights: Iterable[Tensor]) -> int:
    return sum(int((weight == 0).sum()) for weight in weights)


COMPONENT = Unstructured
