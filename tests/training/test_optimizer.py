import pytest
import torch
from torch import nn

from pipeline.settings.training import Fit
from pipeline.training.optimizer import load_moments, make_optimizer, moments


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_biases_and_batch_norms(name):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, spared = make_optimizer(network, Fit(optimizer=name, weight_decay=0.01)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)] and decayed["weight_decay"] == 0.01
    assert len(spared["params"]) == 3 and spared["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_goes_on_from_its_moments(name):
    def step(network, optimizer):
        network(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    first, second = (make_optimizer(network, Fit(optimizer=name)) for network in (one, two))
    step(one, first)
    two.load_state_dict(one.state_dict())
    load_moments(second, {name: tensor.clone() for name, tensor in moments(first).items()})
    step(one, first)
    step(two, second)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
