import pytest
import torch
from torch import nn

from pipeline.compression.pruning.sparsity import KeepSparsity, zeros_share


def network():
    made = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3))
    with torch.no_grad():
        made[0].weight[0] = 0.0
    return made


def test_the_share_is_of_the_weights_of_layers():
    assert zeros_share(network()) == pytest.approx(9 / (18 + 36)), "the zeros of the batch norm's bias do not count"


def test_what_is_zero_is_set_to_zero_again_and_nothing_else():
    made, sparsity = network(), KeepSparsity()
    assert sparsity.apply(None, made) is made and sparsity.restore(made) is made
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    sparsity.after_step(made.to(memory_format=torch.channels_last))
    after = made.state_dict()
    assert not after["0.weight"][0].any() and torch.equal(after["0.weight"][1], before["0.weight"][1])
    assert all(torch.equal(before[name], after[name]) for name in before if name != "0.weight")
