import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline import checkpoint, components
from pipeline.checkpoint import Preprocessing, image_classifier
from pipeline.errors import ModelError, SettingsError
from pipeline.macs import macs
from pipeline.pruners.channel import Channel, _runs

SHAPE = (1, 12, 12)
SPEC = image_classifier(
    "resnet", {"width": 16, "blocks": [1, 1]}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = checkpoint.build(SPEC).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.0)
            nn.init.normal_(module.running_mean)
    return network


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("keep", [0.9, 0.6, 0.25])
def test_macs_end_closest_below_the_target(network, scope, keep):
    whole = macs(network, SHAPE)
    Channel(keep_macs=keep, scope=scope)(SPEC, network, iter(()))
    assert keep - 0.06 < macs(network, SHAPE) / whole <= keep


def test_the_least_important_channels_go_first(network):
    """Of a layer whose channels differ only in size, the smallest go, whatever the norm."""
    weak = [1, 4, 9]
    with torch.no_grad():
        network.blocks[0].conv1.weight[weak] *= 1e-3
        network.blocks[0].bn1.weight[weak] *= 1e-3
        network.blocks[0].conv2.weight[:, weak] *= 1e-3
    for importance in ("l1", "l2"):
        one = checkpoint.build(SPEC).eval()
        one.load_state_dict(network.state_dict())
        step = Channel(keep_macs=0.93, importance=importance)(SPEC, one, iter(()))
        assert set(step.removed["blocks.0.conv1"]) <= set(weak) or set(weak) <= set(step.removed["blocks.0.conv1"])


def test_pruning_only_takes_channels_out(network):
    """The pruned network is the old one with the removed channels' weights cut away."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step = Channel(keep_macs=0.5)(SPEC, network, iter(()))
    after = network.state_dict()

    def kept(layer, width):
        return [channel for channel in range(width) if channel not in step.removed.get(layer, ())]

    stem = kept("stem.0", 16)
    assert torch.equal(after["stem.0.weight"], before["stem.0.weight"][stem])
    assert torch.equal(after["stem.1.running_mean"], before["stem.1.running_mean"][stem])
    inside = kept("blocks.0.conv1", 16)
    assert torch.equal(after["blocks.0.conv1.weight"], before["blocks.0.conv1.weight"][inside][:, stem])
    assert step.removed["stem.0"] == step.removed["blocks.0.conv2"]  # joined by the addition
    assert torch.equal(after["head.weight"], before["head.weight"][:, kept("blocks.1.conv2", 32)])
    assert "head" not in step.removed and step.widths["head"][1] == 4 and step.widths["stem.0"][0] == 1


def test_cutting_away_silent_channels_changes_no_answer(network):
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean"):
            getattr(network.blocks[0].bn1, name)[:8] = 0.0
        network.blocks[0].conv1.weight[:8] = 0.0
        network.blocks[0].conv2.weight[:, :8] = 0.0
    images = torch.randn(5, *SHAPE)
    answers = network(images)
    step = Channel(keep_macs=0.93)(SPEC, network, iter(()))
    assert set(step.removed) == {"blocks.0.conv1"}
    torch.testing.assert_close(network(images), answers, rtol=1e-4, atol=1e-4)


def test_local_takes_the_same_share_of_every_layer(network):
    step = Channel(keep_macs=0.3, scope="local")(SPEC, network, iter(()))
    shares = [len(channels) / (16 if layer.startswith(("stem", "blocks.0")) else 32)
              for layer, channels in step.removed.items()]  # fmt: skip
    assert max(shares) - min(shares) <= 1 / 16


def test_widths_are_multiples_of_round_to(network):
    step = Channel(keep_macs=0.4, round_to=4)(SPEC, network, iter(()))
    assert all(outputs % 4 == 0 for layer, (_, outputs) in step.widths.items() if layer != "head")


def test_no_layer_loses_more_than_max_ratio(network):
    step = Channel(keep_macs=0.4, max_ratio=0.5)(SPEC, network, iter(()))
    assert all(outputs >= 8 for layer, (_, outputs) in step.widths.items() if layer != "head")


@pytest.mark.parametrize(
    ("channels", "size", "ratio", "runs"),
    [
        (8, 4, 0.9, [(0, 4)]),
        (10, 4, 0.9, [(0, 2), (2, 6)]),
        (4, 4, 0.9, []),
        (3, 1, 0.9, [(0, 1), (1, 2)]),
        (8, 2, 0.5, [(0, 2), (2, 4)]),
        (3, 8, 0.9, []),
    ],
)
def test_runs_leave_a_multiple_of_their_size(channels, size, ratio, runs):
    assert list(_runs(channels, size, ratio)) == runs


def test_a_second_pruning_goes_on_from_the_first(network, tmp_path):
    first = Channel(keep_macs=0.7)(SPEC, network, iter(()))
    spec = SPEC.model_copy(update={"pruning": (first,)})
    second = Channel(keep_macs=0.7)(spec, network, iter(()))
    checkpoint.save(tmp_path, spec.model_copy(update={"pruning": (first, second)}), network)
    images = torch.randn(2, *SHAPE)
    assert torch.equal(checkpoint.load(tmp_path)[1](images), network(images))


def test_a_pruned_checkpoint_answers_alike_in_a_new_process(network, tmp_path):
    step = Channel(keep_macs=0.5)(SPEC, network, iter(()))
    checkpoint.save(tmp_path, SPEC.model_copy(update={"pruning": (step,)}), network)
    images = torch.linspace(-1, 1, 2 * 144).view(2, *SHAPE)
    program = (
        "import sys, torch; from pathlib import Path; from pipeline import checkpoint; "
        "network = checkpoint.load(Path(sys.argv[1]))[1]; "
        "print(network(torch.linspace(-1, 1, 288).view(2, 1, 12, 12)).tolist()); "
        "assert 'torch_pruning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(network(images).tolist())


def test_a_target_below_what_is_possible_names_the_least(network):
    with pytest.raises(ModelError) as raised:
        Channel(keep_macs=0.1, round_to=8)(SPEC, network, iter(()))
    text = str(raised.value)
    assert "pruner.keep_macs is 0.1, but the least that resnet can keep with round_to 8 and max_ratio 0.9 is 0." in text
    assert "raise keep_macs to at least" in text


def test_an_error_where_nothing_can_be_pruned(network):
    with pytest.raises(
        ModelError, match="nothing was pruned: no layer of resnet can lose 64 channels and keep as many"
    ):
        Channel(keep_macs=0.5, round_to=64)(SPEC, network, iter(()))


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_keep_macs_lies_between_0_and_1(keep):
    with pytest.raises(SettingsError, match=f"pruners.channel: keep_macs is {keep}"):
        components.build("pruners", "channel", {"keep_macs": keep})
