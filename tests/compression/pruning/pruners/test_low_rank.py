import math

import pytest
import torch
from torch import nn

from pipeline import components
from pipeline.compression.pruning.pruners.low_rank import LowRank, _cut_, _layers
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.models.size import macs
from pipeline.models.spec import Preprocessing, image_classifier

SHAPE = (1, 12, 12)
SPEC = image_classifier(
    "resnet", {"width": 16, "blocks": [1, 1]}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return checkpoint.build(SPEC).eval()


def one_layer(layer):
    """(network of this layer alone, shape of its image)"""
    torch.manual_seed(3)
    layer.reset_parameters()
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.Flatten(), layer), (layer.in_features, 1, 1)
    return nn.Sequential(nn.Identity(), layer), (layer.in_channels, 9, 9)


def cut(network, shape, rank):
    layers = _layers(network, shape)
    with torch.no_grad():
        _cut_(network, layers, {"1": rank})
    return network[1]


def dense(chain):
    """The (outputs, inputs, height, width) weight that a chain of stride 1 stands for."""
    weights = [link.weight if link.weight.ndim == 4 else link.weight[:, :, None, None] for link in chain]
    if len(weights) == 2:
        return torch.einsum("rihw,or->oihw", weights[0], weights[1][:, :, 0, 0])
    return torch.einsum("si,rshw,or->oihw", weights[0][:, :, 0, 0], weights[1], weights[2][:, :, 0, 0])


LAYERS = {
    "linear": lambda: nn.Linear(20, 12),
    "1x1": lambda: nn.Conv2d(10, 14, 1, bias=False),
    "3x3": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "5x3, strided": lambda: nn.Conv2d(6, 8, (5, 3), stride=2, padding=(2, 1), bias=False),
    "dilated, mirrored": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2, padding_mode="reflect"),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_full_rank_answers_as_the_layer_did(kind):
    network, shape = one_layer(LAYERS[kind]())
    images = torch.randn(4, *shape)
    answers = network(images)
    outputs, inputs = network[1].weight.shape[:2]
    chain = cut(network, shape, (min(outputs, inputs),) if kind in ("linear", "1x1") else (inputs, outputs))
    assert len(chain) == (2 if kind in ("linear", "1x1") else 3)
    torch.testing.assert_close(network(images), answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "1x1"])
def test_two_layers_are_the_truncated_singular_value_decomposition(kind):
    network, shape = one_layer(LAYERS[kind]())
    weight = network[1].weight.detach().flatten(1).double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    nearest = (left[:, :4] * values[:4]) @ right[:4]
    torch.testing.assert_close(dense(cut(network, shape, (4,)))[:, :, 0, 0], nearest.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [(5,), (3, 5), (6, 2)])
def test_what_is_lost_is_at_most_the_energy_discarded_in_both_modes(rank):
    network, shape = one_layer(nn.Conv2d(8, 12, 3))
    weight = network[1].weight.detach().clone()
    by_output = torch.linalg.svdvals(weight.flatten(1))
    by_input = torch.linalg.svdvals(weight.transpose(0, 1).flatten(1))
    discarded = float(by_output[rank[-1] :].square().sum())
    discarded += float(by_input[rank[0] :].square().sum()) if len(rank) == 2 else 0.0
    lost = float((dense(cut(network, shape, rank)).detach() - weight).square().sum())
    assert 0.0 < lost <= discarded * (1 + 1e-4)
    if len(rank) == 1:
        assert lost == pytest.approx(discarded, rel=1e-3)


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9])
def test_ranks_are_the_smallest_that_keep_the_energy(network, energy):
    kept = network.blocks[1].conv2.weight.detach().clone()
    step = LowRank(energy=energy, round_to=1)(SPEC, network, iter(()))
    for mode, rank in (
        (kept.transpose(0, 1), step.ranks["blocks.1.conv2"][0]),
        (kept, step.ranks["blocks.1.conv2"][1]),
    ):
        squares = torch.linalg.svdvals(mode.flatten(1)).square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[rank - 1] >= energy - 1e-6 and (rank == 1 or shares[rank - 2] < energy + 1e-6)


def test_a_layer_of_low_rank_is_found_and_answers_alike(network):
    with torch.no_grad():
        narrow = torch.randn(4, 32, 3, 3)
        network.blocks[1].conv2.weight.copy_(torch.einsum("rihw,or->oihw", narrow, torch.randn(32, 4)))
    images = torch.randn(5, *SHAPE)
    answers = network(images)
    step = LowRank(energy=0.999999, round_to=1)(SPEC, network, iter(()))
    assert step.ranks == {"blocks.1.conv2": (4,)}  # its inputs need their whole width: no 1x1 layer in front
    torch.testing.assert_close(network(images), answers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("keep", [0.85, 0.5, 0.2])
def test_macs_end_at_or_below_the_target_and_one_energy_more_would_not(network, keep, round_to):
    whole = macs(network, SHAPE)
    layers = _layers(network, SHAPE)
    step = LowRank(keep_macs=keep, round_to=round_to)(SPEC, network, iter(()))
    assert macs(network, SHAPE) <= keep * whole
    energies = sorted({share for layer in layers.values() for mode in layer.modes for share in mode.shares.tolist()})
    for energy in energies:
        ranks = {name: rank for name, layer in layers.items() if (rank := layer.cheapest(energy, round_to))}
        total = sum(layer.macs(ranks.get(name, ())) for name, layer in layers.items())
        if total <= keep * whole:
            best = ranks
    assert step.ranks == best


def test_the_predicted_multiplications_are_those_counted(network):
    layers = _layers(network, SHAPE)
    assert sum(layer.macs(()) for layer in layers.values()) == macs(network, SHAPE)
    step = LowRank(energy=0.5, round_to=2)(SPEC, network, iter(()))
    assert sum(layer.macs(step.ranks.get(name, ())) for name, layer in layers.items()) == macs(network, SHAPE)
    assert all(layers[name].macs(rank) < layers[name].macs(()) for name, rank in step.ranks.items())


def test_ranks_are_multiples_of_round_to_or_whole_widths(network):
    layers = _layers(network, SHAPE)
    step = LowRank(keep_macs=0.6, round_to=4)(SPEC, network, iter(()))
    for name, rank in step.ranks.items():
        widths = layers[name].weight.shape[:2]
        assert all(one % 4 == 0 or one in widths for one in rank)


def test_batch_norms_biases_and_grouped_convolutions_stay():
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 16, 3),
        nn.Flatten(), nn.Linear(16 * 36, 4),
    ).eval()  # fmt: skip
    norm, grouped, bias = network[1], network[2], network[3].bias.clone()
    step = LowRank(energy=0.4, round_to=1)(SPEC, network, iter(()))
    assert network[1] is norm and network[2] is grouped and {"3"} <= set(step.ranks)
    assert torch.equal(network[3][-1].bias, bias) and all(link.bias is None for link in network[3][:-1])


def test_a_target_below_what_is_possible_names_one_that_is(network):
    with pytest.raises(ModelError) as raised:
        LowRank(keep_macs=0.001, round_to=2)(SPEC, network, iter(()))
    text = str(raised.value)
    assert text.startswith("pruner.keep_macs is 0.001, but the least that resnet can keep with round_to 2 is 0.")
    assert text.endswith("or lower round_to")
    LowRank(keep_macs=float(text.split("to at least ")[1].split()[0]), round_to=2)(SPEC, network, iter(()))


def test_an_energy_that_cuts_nothing_names_one_that_does(network):
    with pytest.raises(
        ModelError, match=r"nothing was pruned: with pruner\.energy 0\.9999999 and round_to 1"
    ) as raised:
        LowRank(energy=0.9999999, round_to=1)(SPEC, network, iter(()))
    assert LowRank(energy=float(str(raised.value).rsplit(maxsplit=1)[1]), round_to=1)(SPEC, network, iter(())).ranks


def test_an_error_where_no_chain_is_cheaper(network):
    with pytest.raises(ModelError, match=r"nothing was pruned: no layer of resnet takes fewer .* pruner\.round_to 64"):
        LowRank(keep_macs=0.9, round_to=64)(SPEC, network, iter(()))


@pytest.mark.parametrize("arguments", [{}, {"energy": 0.9, "keep_macs": 0.5}])
def test_energy_or_keep_macs_is_given(arguments):
    with pytest.raises(SettingsError, match=r"pruners\.low_rank: energy is .* and keep_macs is .*: give exactly one"):
        components.build("pruners", "low_rank", arguments)


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_shares_lie_between_0_and_1(value):
    for name in ("energy", "keep_macs"):
        with pytest.raises(SettingsError, match=f"pruners.low_rank: {name} is {value}"):
            components.build("pruners", "low_rank", {name: value})


def test_it_knows_no_half_way():
    pruner = LowRank(keep_macs=0.5)
    assert pruner.rounds(3) == [pruner]
