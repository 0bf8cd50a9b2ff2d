import logging

import numpy as np
import pytest
import torch

from pipeline import components
from pipeline.compression.pruning.pruners.unstructured import Unstructured
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier

SHAPE = (1, 12, 12)
SPEC = image_classifier(
    "resnet", {"width": 8, "blocks": [1, 1]}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return checkpoint.build(SPEC).eval()


def layers(network):
    return {
        name: module.weight.detach().numpy()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }


def flat(network):
    return np.concatenate([weight.ravel() for weight in layers(network).values()])


def test_global_magnitude_leaves_the_largest_of_all(network):
    before = flat(network).copy()
    Unstructured(sparsity=0.7)(SPEC, network, iter(()))
    count = round(0.7 * before.size)
    expected = np.where(np.abs(before) > np.sort(np.abs(before))[count - 1], before, 0.0)
    np.testing.assert_array_equal(flat(network), expected)


def test_local_magnitude_leaves_the_largest_of_every_layer(network):
    before = {name: weight.copy() for name, weight in layers(network).items()}
    step = Unstructured(sparsity=0.5, scope="local")(SPEC, network, iter(()))
    assert set(step.zeros) == set(before)
    for name, weight in layers(network).items():
        limit = np.sort(np.abs(before[name]).ravel())[round(0.5 * weight.size) - 1]
        np.testing.assert_array_equal(weight, np.where(np.abs(before[name]) > limit, before[name], 0.0))
        assert step.zeros[name] == pytest.approx(0.5, abs=0.5 / weight.size)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_random_takes_the_share_by_seed_whatever_the_size(network, scope):
    def pruned(seed):
        one = checkpoint.build(SPEC).eval()
        one.load_state_dict(network.state_dict())
        Unstructured(sparsity=0.4, importance="random", scope=scope, seed=seed)(SPEC, one, iter(()))
        return flat(one)

    first, again, other = pruned(1), pruned(1), pruned(2)
    assert np.mean(first == 0) == pytest.approx(0.4, abs=1e-3)
    np.testing.assert_array_equal(first, again)
    assert np.any((first == 0) != (other == 0))
    large = np.abs(flat(network)) > np.median(np.abs(flat(network)))
    assert np.mean(first[large] == 0) == pytest.approx(0.4, abs=0.05)


def test_only_layers_get_zeros(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Unstructured(sparsity=0.6)(SPEC, network, iter(()))
    for name, tensor in network.state_dict().items():
        if tensor.ndim < 2:
            assert torch.equal(tensor, before[name])
        else:
            assert bool(((tensor == before[name]) | (tensor == 0)).all())


def test_rounds_follow_the_cubic_schedule():
    shares = [pruner.sparsity for pruner in Unstructured(sparsity=0.8, scope="local", seed=3).rounds(4)]
    assert shares == pytest.approx([0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3), 0.8])
    assert shares[-1] == 0.8
    assert all(
        (one.scope, one.seed) == ("local", 3) for one in Unstructured(sparsity=0.8, scope="local", seed=3).rounds(2)
    )


@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_rounds_keep_the_zeros_of_the_rounds_before(network, importance):
    zeros = np.zeros(flat(network).size, bool)
    for pruner in Unstructured(sparsity=0.9, importance=importance).rounds(3):
        pruner(SPEC, network, iter(()))
        with torch.no_grad():  # the weights that are left learn on
            for weight in network.parameters():
                weight.mul_(1.0 + 0.5 * torch.rand_like(weight))
        now = flat(network) == 0
        assert np.all(now[zeros]) and now.mean() == pytest.approx(pruner.sparsity, abs=1e-3)
        zeros = now
    assert zeros.mean() == pytest.approx(0.9, abs=1e-3)


def test_it_says_that_zeros_bring_no_speed(network, caplog):
    with caplog.at_level(logging.WARNING):
        Unstructured(sparsity=0.5)(SPEC, network, iter(()))
    assert "50.0 % of the weights are zero now. This brings no speed" in caplog.text
    assert "the file stays as large" in caplog.text


def test_a_share_that_empties_a_layer_is_refused_and_nothing_is_changed(network):
    with torch.no_grad():
        network.blocks[0].conv1.weight.mul_(1e-4)
    before = flat(network).copy()
    with pytest.raises(ModelError) as raised:
        Unstructured(sparsity=0.9)(SPEC, network, iter(()))
    assert str(raised.value).startswith(
        "pruner.sparsity is 0.9: with scope global, blocks.0.conv1 of resnet would lose all"
    )
    np.testing.assert_array_equal(flat(network), before)
    step = Unstructured(sparsity=0.999, scope="local")(SPEC, network, iter(()))
    assert max(step.zeros.values()) < 1.0


def test_an_error_where_as_many_are_zero_already(network):
    Unstructured(sparsity=0.5)(SPEC, network, iter(()))
    with pytest.raises(
        ModelError, match=r"nothing was pruned: pruner\.sparsity is 0\.4, and .* zero already; raise .* 0\.5"
    ):
        Unstructured(sparsity=0.4)(SPEC, network, iter(()))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_sparsity_lies_between_0_and_1(share):
    with pytest.raises(SettingsError, match=f"pruners.unstructured: sparsity is {share}"):
        components.build("pruners", "unstructured", {"sparsity": share})
