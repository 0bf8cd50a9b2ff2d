import torch
from torch import nn

from pipeline.models.size import macs, parameters


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 16, 5, bias=False),
    )


def test_macs_against_a_count_by_hand():
    assert macs(network(), (2, 8, 8)) == 4 * 16 * (2 * 9) + 6 * 16 * 2 + 5 * 96
    assert parameters(network()) == 4 * 2 * 9 + 6 * 2 + 5 * 96


def test_macs_against_torch_prunings_counter():
    from torch_pruning.utils import count_ops_and_params

    one = network()
    counted, weights = count_ops_and_params(one[:3], torch.zeros(1, 2, 8, 8))
    relus = 4 * 16  # which it counts and we do not
    assert macs(one[:3], (2, 8, 8)) == counted - relus and parameters(one[:3]) == weights


def test_a_layer_that_runs_twice_counts_twice():
    layer = nn.Linear(8, 8)
    assert macs(nn.Sequential(layer, nn.ReLU(), layer), (1, 1, 8)) == 2 * 64


def test_the_network_is_left_as_it_was():
    one = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    macs(one, (1, 4, 4))
    assert one.training and one[1].num_batches_tracked == 0 and not one[0]._forward_hooks
