import pytest
import torch
from torch import nn

from pipeline.compression.pruning.pruners.channel import Channel
from pipeline.compression.pruning.sensitivity import Sensitivity, figure, layer_ratios, sweep, write
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier

SHAPE = (1, 12, 12)
SPEC = image_classifier(
    "resnet", {"width": 16, "blocks": [1, 1]}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
)
IMAGES = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def network():
    """Its blocks.0.conv1 makes 8 channels of 16 that say nothing."""
    torch.manual_seed(0)
    network = checkpoint.build(SPEC).eval()
    with torch.no_grad():
        for tensor in (network.blocks[0].bn1.weight, network.blocks[0].bn1.bias, network.blocks[0].conv1.weight):
            tensor[::2] = 0.0
        network.blocks[0].conv2.weight[:, ::2] = 0.0
    return network


def made(**values):
    return Sensitivity(
        what="accuracy",
        importance="l2",
        baseline=0.9,
        values={layer: dict(zip((0.25, 0.5, 0.75), each, strict=True)) for layer, each in values.items()},
        joined={layer: (layer,) for layer in values},
    )


def likeness_to(network):
    """Measures minus the largest change of an answer."""
    answers = network(IMAGES).detach()

    @torch.no_grad()
    def measure(one):
        return -float((one(IMAGES) - answers).abs().max())

    return measure


def test_one_layer_at_a_time_loses_its_share(network):
    found = sweep(network, SPEC, lambda one: float(one.blocks[0].conv1.out_channels), ratios=(0.75, 0.25, 0.5))
    assert found.baseline == 16.0 and found.values["blocks.0.conv1"] == {0.25: 12.0, 0.5: 8.0, 0.75: 4.0}
    assert all(set(values.values()) == {16.0} for layer, values in found.values.items() if layer != "blocks.0.conv1")
    assert "head" not in found.values and found.joined["stem.0"] == ("stem.0", "blocks.0.conv2")


def test_the_least_important_channels_go(network):
    found = sweep(network, SPEC, likeness_to(network))
    values = found.values["blocks.0.conv1"]
    assert (
        values[0.25] == pytest.approx(0, abs=1e-4)
        and values[0.5] == pytest.approx(0, abs=1e-4)
        and values[0.75] < -1e-2
    )
    assert layer_ratios(found, 1e-3)["blocks.0.conv1"] == 0.5
    assert layer_ratios(found, 1e-3)["stem.0"] == 0.0


def test_the_network_stays_as_it_was(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    sweep(network, SPEC, lambda one: float(one.training))
    assert network.training and all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_is_measured_is_in_evaluation_mode(network):
    assert sweep(network.train(), SPEC, lambda one: float(one.training)).baseline == 0.0


def test_a_layer_too_narrow_for_a_ratio_is_worth_the_baseline():
    spec = SPEC.model_copy(update={"arguments": {"width": 3, "blocks": [1]}})
    network = checkpoint.build(spec).eval()
    found = sweep(
        network, spec, lambda one: float(sum(weight.numel() for weight in one.parameters())), ratios=(0.25, 0.5)
    )
    assert all(values[0.25] == found.baseline > values[0.5] for values in found.values.values())


def test_an_importance_may_look_at_data(network):
    found = sweep(
        network, SPEC, lambda one: 0.0, importance="taylor", batches=[(IMAGES, torch.zeros(6, dtype=torch.int64))]
    )
    assert found.importance == "taylor" and found.values


def test_ratios_for_the_pruner_are_the_largest_that_cost_no_more_than_tolerated():
    found = made(free=(0.9, 0.9, 0.9), middling=(0.89, 0.88, 0.5), dear=(0.8, 0.4, 0.1), better=(0.95, 0.7, 0.6))
    assert layer_ratios(found, 0.02) == {"free": 0.75, "middling": 0.5, "dear": 0.0, "better": 0.25}
    assert layer_ratios(found, 0.0) == {"free": 0.75, "middling": 0.0, "dear": 0.0, "better": 0.25}


def test_a_lucky_large_ratio_does_not_count():
    assert layer_ratios(made(odd=(0.9, 0.8, 0.9)), 0.02) == {"odd": 0.25}


def test_not_a_number_is_a_drop():
    assert layer_ratios(made(broken=(0.9, float("nan"), 0.9)), 0.02) == {"broken": 0.25}


def test_the_channel_pruner_takes_the_ratios(network):
    found = sweep(network, SPEC, likeness_to(network))
    step = Channel(keep_macs=0.93, layer_ratios=layer_ratios(found, 1e-3))(SPEC, network, iter(()))
    assert set(step.removed) == {"blocks.0.conv1"} and len(step.removed["blocks.0.conv1"]) <= 8


@pytest.mark.parametrize("ratios", [(0.5, 1.0), (0.0,), ()])
def test_a_ratio_that_removes_a_whole_layer_or_nothing_is_refused(network, ratios):
    with pytest.raises(SettingsError) as raised:
        sweep(network, SPEC, lambda one: 0.0, ratios=ratios)
    assert f"ratios are {list(ratios)}: give at least one" in str(raised.value)
    assert "above 0 and below 1" in str(raised.value)


def test_an_importance_with_nothing_to_score_by_is_refused(network):
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    with pytest.raises(ModelError, match="importance 'bn_scale' scores a channel by the scale of its batch norms"):
        sweep(network, SPEC, lambda one: 0.0, importance="bn_scale")


def test_files_hold_the_numbers_and_a_plot(tmp_path):
    found = made(stem=(0.9, 0.85, 0.5))
    write(tmp_path / "out", found)
    assert Sensitivity.model_validate_json((tmp_path / "out" / "sensitivity.json").read_text()) == found
    assert (tmp_path / "out" / "plots" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_says_what_it_shows():
    found = made(stem=(0.9, 0.85, 0.5), late=(0.95, 0.9, 0.9)).model_copy(
        update={"joined": {"stem": ("stem", "blocks.0.conv2"), "late": ("late",)}}
    )
    axes = figure(found).axes[0]
    assert axes.get_title(loc="left") == "Change of accuracy from 0.900, without recovery"
    assert axes.get_xlabel() == "channels removed from this layer alone, least l2 first"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem (+ 1 joined)", "late"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["25 %", "50 %", "75 %"]
    assert [text.get_text() for text in axes.texts] == ["+0.000", "-0.050", "-0.400", "+0.050", "+0.000", "+0.000"]
