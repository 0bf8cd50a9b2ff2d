"""The optimizer of a training, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.settings.training import Fit


def make_optimizer(learned: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters of `learned`, those of a loss among them.

    Weight decay spares biases, batch norms and single numbers such as a learned temperature: all that is no matrix.
    """
    weights = [parameter for parameter in learned.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": fit.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if fit.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=fit.lr)
    return torch.optim.SGD(groups, lr=fit.lr, momentum=0.9, nesterov=True)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what `optimizer` remembers of each parameter, as ``<number of the parameter>.<name>``."""
    state: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, one in state.items() for name, tensor in one.items()}


def load_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Have `optimizer` go on from what `moments` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
