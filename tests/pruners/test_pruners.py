"""Every file of `pruners/` keeps the contract of `types.Pruner`."""

import inspect

import pytest
import torch

from pipeline import checkpoint, components
from pipeline.checkpoint import Preprocessing, image_classifier
from pipeline.macs import macs, parameters

SPEC = image_classifier(
    "resnet", {"width": 8, "blocks": [1, 1]}, (1, 12, 12), tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
)


def batches():
    chance = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(8, 1, 12, 12, generator=chance), torch.randint(0, 4, (8,), generator=chance)


@pytest.fixture(params=components.names("pruners"))
def pruned(request):
    """(network before, network after, step)"""
    component = components.find("pruners", request.param)
    arguments = {"keep_macs": 0.6} if "keep_macs" in inspect.signature(component).parameters else {}
    torch.manual_seed(0)
    before, after = checkpoint.build(SPEC).eval(), checkpoint.build(SPEC).eval()
    after.load_state_dict(before.state_dict())
    return before, after, components.build("pruners", request.param, arguments)(SPEC, after, batches())


def test_the_network_became_smaller_in_place(pruned):
    before, after, _ = pruned
    assert macs(after, (1, 12, 12)) < macs(before, (1, 12, 12)) and parameters(after) < parameters(before)


def test_it_still_takes_the_image_and_answers_every_label(pruned):
    assert pruned[1](torch.randn(3, 1, 12, 12)).shape == (3, 4)


def test_the_step_rebuilds_it(pruned, tmp_path):
    _, after, step = pruned
    checkpoint.save(tmp_path, SPEC.model_copy(update={"pruning": (step,)}), after)
    images = torch.randn(3, 1, 12, 12)
    assert torch.equal(checkpoint.load(tmp_path)[1](images), after(images))


def test_the_step_says_which_channels_went(pruned):
    before, _, step = pruned
    assert step.method and step.removed
    for layer, channels in step.removed.items():
        wide = before.get_submodule(layer).weight.shape[0]
        assert step.widths[layer][1] == wide - len(channels) and set(channels) < set(range(wide))
