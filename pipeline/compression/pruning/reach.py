"""What the settings of pruning can reach, known before anything is trained.

`in_rounds` makes every step that the settings ask for; `check_reach` tries what follows from a network's shapes alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from pipeline import components
from pipeline.errors import SettingsError
from pipeline.export import onnx_graph
from pipeline.models import checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.protocols import Pruner
from pipeline.settings.compression import Prune

_BY_SHAPE = ("channel", "depth", "n_m")
"""Pruners of which it can be said before training what they can reach."""


def in_rounds(config: Prune, limits: Mapping[str, float] = {}) -> list[Pruner]:
    """Return every step in order, all made before the first is called: wrong settings must not cost a training.

    Each method takes `config.rounds` steps, or as many as it can be cut into. `limits` (layer -> largest share it may
    lose) hold for the first method, beside those that its own settings name. Raises `SettingsError`, also where no
    method can take that many steps.
    """
    steps = [list(pruner.rounds(config.rounds)) for pruner in _pruners(config, limits)]
    most = max(map(len, steps))
    if most < config.rounds:
        names = ", ".join(component.name for component in (config.pruner, *config.then))
        raise SettingsError(
            f"prune.rounds is {config.rounds}, but no pruner of prune.pruner and prune.then ({names}) can be cut into more "
            f"than {most}: set prune.rounds to {most}, or take one that can, such as channel or unstructured"
        )
    return [one for of_one_method in steps for one in of_one_method]


def check_reach(config: Prune, spec: ModelSpec) -> None:
    """Raise as the stage would where `config.pruner` asks for more than any network of `spec` can give.

    So that it is known before such a network is trained. That holds for what follows from shapes alone: what the other
    methods can reach depends on the weights, or on a clock, and `config.then` on what is left.
    """
    if config.pruner.name not in _BY_SHAPE or config.pruner.arguments.get("keep_latency"):
        return
    images, labels = torch.randn(2, *spec.image_shape), torch.zeros(2, dtype=torch.int64)
    with onnx_graph.quiet():
        config.pruner.build("pruners", "prune.pruner")(spec, checkpoint.build(spec), itertools.repeat((images, labels)))


def _pruners(config: Prune, limits: Mapping[str, float]) -> list[Pruner]:
    first = config.pruner.arguments
    if limits:
        first["layer_ratios"] = {**limits, **first.get("layer_ratios", {})}
    return [
        components.build("pruners", config.pruner.name, first, "prune.pruner"),
        *(component.build("pruners", f"prune.then.{place}") for place, component in enumerate(config.then)),
    ]
