import pytest
import torch
from torch import nn

from pipeline import components
from pipeline.errors import SettingsError
from pipeline.models.architectures.resnet import ResNet
from pipeline.models.size import macs, parameters


def test_resnet_20_has_the_parameters_of_the_paper():
    """0.27 million (He et al., table 6), with projections on the two shortcuts that change the width."""
    assert parameters(ResNet(3, 10, width=16, blocks=[3, 3, 3])) == 272_474


@pytest.mark.parametrize(("width", "blocks"), [(16, [1, 1, 1]), (5, [2, 1])])
def test_parameters_against_a_count_by_hand(width, blocks):
    expected, before = 1 * width * 9 + 2 * width, width
    for group, depth in enumerate(blocks):
        wide = width * 2**group
        for block in range(depth):
            inside = before if block == 0 else wide
            expected += 9 * inside * wide + 9 * wide * wide + 4 * wide
            if inside != wide:
                expected += inside * wide + 2 * wide
        before = wide
    assert parameters(ResNet(1, 10, width=width, blocks=blocks)) == expected + 10 * before + 10


@pytest.mark.parametrize(("stride", "edge"), [(1, 28), (2, 14)])
def test_each_group_after_the_first_halves_the_image(stride, edge):
    network = ResNet(1, 10, width=4, blocks=[1, 2, 1], stem_stride=stride)
    sizes = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    network(torch.zeros(2, 1, 28, 28))
    half, quarter = (edge + 1) // 2, (edge + 3) // 4
    assert sizes == [(4, edge, edge), (8, half, half), (8, half, half), (16, quarter, quarter)]


def test_a_stem_of_stride_2_needs_a_quarter_of_the_work():
    whole, half = (macs(ResNet(1, 10, width=8, blocks=[1], stem_stride=stride), (1, 28, 28)) for stride in (1, 2))
    assert half == pytest.approx(whole / 4, rel=1e-3)


def test_every_convolution_has_a_batch_norm_of_its_own():
    modules = list(ResNet(3, 10, width=4, blocks=[2, 2]).modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert [one.out_channels for one in convolutions] == [one.num_features for one in norms]
    assert all(one.bias is None for one in convolutions)


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("blocks", []), ("blocks", [1, 0])])
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(SettingsError, match=rf"models\.resnet: {key}"):
        components.build("models", "resnet", {"in_channels": 1, "classes": 10, key: value})
