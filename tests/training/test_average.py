import torch
from torch import nn

from pipeline.training.average import update_average


def test_the_average_follows_by_one_minus_decay():
    network, average = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        network.num_batches_tracked.fill_(7)
    update_average(average, network, 0.75)
    assert average.weight.tolist() == [1.0, 1.25, 1.5]
    assert average.num_batches_tracked == 7
