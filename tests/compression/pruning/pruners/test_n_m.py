import logging

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import components
from pipeline.compression.pruning.pruners.n_m import NM, keep_largest
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier

SHAPE = (1, 12, 12)


def spec_of(width):
    return image_classifier(
        "resnet", {"width": width, "blocks": [1, 1]}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return checkpoint.build(spec_of(8)).eval()


@pytest.mark.parametrize("shape", [(3, 8), (5, 8, 3, 3), (2, 16, 1, 1)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 8)])
def test_the_largest_of_every_run_along_the_inputs_stay(shape, n, m):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = weight.numpy().copy()
    for place in np.ndindex(shape[0], *shape[2:]):
        for start in range(0, shape[1], m):
            run = expected[(place[0], slice(start, start + m), *place[1:])]
            run[np.argsort(np.abs(run))[: m - n]] = 0.0
    np.testing.assert_array_equal(keep_largest(weight, n, m).numpy(), expected)


def test_ties_leave_no_more_than_n():
    assert (keep_largest(torch.ones(4, 8, 3, 3), 2, 4) != 0).float().mean() == 0.5


def test_the_network_gets_the_pattern_and_keeps_the_rest(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step = NM()(spec_of(8), network, iter(()))
    assert "stem.0" not in step.zeros and set(step.zeros.values()) == {0.5}
    assert {"blocks.0.conv1", "blocks.1.shortcut.0", "head"} <= set(step.zeros)
    for name, tensor in network.state_dict().items():
        layer = name.rpartition(".")[0]
        if name.endswith("weight") and layer in step.zeros:
            runs = tensor.movedim(1, -1).reshape(-1, 4)
            assert bool(((runs != 0).sum(1) == 2).all())
            assert torch.equal(tensor[tensor != 0], before[name][tensor != 0])
        else:
            assert torch.equal(tensor, before[name])


def test_it_names_the_layers_left_whole_and_where_speed_comes_from(network, caplog):
    with caplog.at_level(logging.WARNING):
        NM()(spec_of(8), network, iter(()))
    assert "n_m: stem.0 left whole: the input channels are no multiple of pruner.m (4)" in caplog.text
    assert "GPUs with sparse tensor cores" in caplog.text and "everywhere else the model is as slow" in caplog.text


def test_grouped_convolutions_count_the_inputs_of_a_group():
    network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8))
    assert set(NM()(spec_of(8), network, iter(())).zeros) == {"1"}


def test_an_error_where_no_layer_fits():
    network = checkpoint.build(spec_of(6))
    with pytest.raises(ModelError, match=r"nothing was pruned: no layer of resnet .* multiple of pruner\.m \(8\)"):
        NM(4, 8)(spec_of(6), network, iter(()))


def test_an_error_where_the_pattern_is_there_already(network):
    NM()(spec_of(8), network, iter(()))
    with pytest.raises(ModelError, match=r"nothing was pruned: resnet has at most 2 of every 4 weights already"):
        NM()(spec_of(8), network, iter(()))
    assert set(NM(1, 4)(spec_of(8), network, iter(())).zeros.values()) == {0.75}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"n": 4}, "n is 4 and m is 4: n must be smaller than m"), ({"n": 0}, "n is 0"), ({"m": 1}, "m is 1")],
)
def test_n_is_smaller_than_m(arguments, text):
    with pytest.raises(SettingsError, match=f"pruners.n_m: {text}"):
        components.build("pruners", "n_m", arguments)


def test_it_knows_no_half_way():
    pruner = NM()
    assert pruner.rounds(3) == [pruner]
