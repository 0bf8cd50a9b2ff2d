import pytest
import torch
from torch import nn

from pipeline import components
from pipeline.compression.pruning.pruners.depth import Depth, _blocks, _changes
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier

SHAPE = (1, 12, 12)


def spec_of(*blocks):
    return image_classifier(
        "resnet", {"width": 8, "blocks": list(blocks)}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
    )


def network_of(spec):
    torch.manual_seed(0)
    return checkpoint.build(spec).eval()


def batches(count=100):
    chance = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(8, *SHAPE, generator=chance), torch.randint(0, 4, (8,), generator=chance)


def test_the_change_is_the_distance_of_output_and_input_relative_to_the_output():
    network = network_of(spec_of(2, 2))
    images = [images for images, _ in batches(2)]
    changes = _changes(network, images)
    given = network.blocks[0](network.stem(torch.cat(images)))
    answer = network.blocks[1](given)
    assert changes["blocks.1"] == pytest.approx(
        float((answer - given).detach().norm() / answer.detach().norm()), rel=1e-5
    )
    assert list(changes) == ["blocks.0", "blocks.1", "blocks.3"]  # blocks.2 halves the image


def test_the_blocks_that_change_least_go_first():
    network = network_of(spec_of(3, 2))
    with torch.no_grad():
        for block, size in ((0, 0.5), (1, 0.01), (4, 0.1)):
            network.blocks[block].bn2.weight.fill_(size)
    step = Depth(drop=2)(spec_of(3, 2), network, batches())
    assert step.dropped == ("blocks.1", "blocks.4")
    assert isinstance(network.blocks[1], nn.Identity) and isinstance(network.blocks[4], nn.Identity)


def test_dropping_a_block_that_changes_nothing_changes_no_answer():
    network = network_of(spec_of(1, 2))
    with torch.no_grad():
        network.blocks[2].bn2.weight.zero_()
    images = torch.randn(3, *SHAPE)
    answers = network(images)
    assert Depth(drop=1)(spec_of(1, 2), network, batches()).dropped == ("blocks.2",)
    assert torch.equal(network(images), answers)


def test_it_looks_at_a_few_batches_only():
    left = batches(100)
    Depth(drop=1)(spec_of(1, 1), network_of(spec_of(1, 1)), left)
    assert len(list(left)) == 96


def test_blocks_are_the_outermost_modules_of_a_container_with_a_forward_and_a_convolution():
    class Residual(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, x):
            return x + self.inside(x)

    def thin():
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    network = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        thin(),
        nn.Sequential(Residual(thin()), Residual(nn.Sequential(Residual(thin()), nn.ReLU()))),
        nn.ModuleList([Residual(nn.Conv2d(4, 4, 1))]),
        Residual(nn.ReLU()),
    )
    assert list(_blocks(network)) == ["2.0", "2.1", "3.0"]


def test_rounds_share_the_blocks():
    assert [pruner.drop for pruner in Depth(drop=7).rounds(3)] == [3, 2, 2]
    assert [pruner.drop for pruner in Depth(drop=2).rounds(3)] == [1, 1], "a round drops one at least"


def test_rounds_measure_again_what_the_round_before_left():
    spec, network = spec_of(3, 3), network_of(spec_of(3, 3))
    dropped = []
    for pruner in Depth(drop=4).rounds(2):
        dropped += pruner(spec, network, batches()).dropped
    assert len(set(dropped)) == 4 and "blocks.3" not in dropped


def test_asking_for_too_many_names_those_that_can_go():
    network = network_of(spec_of(1, 1, 1))
    with pytest.raises(ModelError) as raised:
        Depth(drop=2)(spec_of(1, 1, 1), network, batches())
    text = str(raised.value)
    assert text.startswith("pruner.drop is 2, but resnet has only 1 that can go (blocks.0): a block in")
    assert text.endswith("lower drop to at most 1")
    assert not isinstance(network.blocks[0], nn.Identity)


def test_an_error_where_no_block_can_go():
    spec = image_classifier("training_toys:Plain", {}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,)))
    with pytest.raises(ModelError, match=r"has none that can go: .* prune by another method"):
        Depth(drop=1)(spec, checkpoint.build(spec), batches())


def test_at_least_one_block_goes():
    with pytest.raises(SettingsError, match=r"pruners\.depth: drop is 0"):
        components.build("pruners", "depth", {"drop": 0})
