import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline import components
from pipeline.compression.pruning import latency
from pipeline.compression.pruning.groups import groups
from pipeline.compression.pruning.importance import BATCHES, score_channels
from pipeline.compression.pruning.pruners.channel import Channel, _runs
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.models.size import macs, parameters
from pipeline.models.spec import Preprocessing, image_classifier

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


def batches(count=BATCHES):
    chance = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(8, *SHAPE, generator=chance), torch.randint(0, 4, (8,), generator=chance)


def scores(network, importance, seed=0, images=()):
    """Group -> scores"""
    found = groups(network, torch.zeros(1, *SHAPE))
    return {group.layer: each for group, each in score_channels(importance, SPEC, network, found, iter(images), seed)}


def in_rounds(network, pruner, count):
    """Prune in rounds as the stage does; yield the spec after each."""
    spec = SPEC
    for one in pruner.rounds(count):
        step = one(spec, network, batches())
        spec = spec.model_copy(update={"pruning": (*spec.pruning, step)})
        yield spec


@pytest.fixture
def stopwatch(monkeypatch):
    """A clock by which a multiply-accumulate takes a nanosecond, and then `noise` of that; counts the timings."""

    class Stopwatch:
        timings = 0
        noise = (0.0,)

        def beside(self, spec, network):
            before = macs(network, SHAPE) * 1e-6

            def milliseconds(smaller):
                self.timings += 1
                noise = self.noise[self.timings % len(self.noise)]
                return before, macs(smaller, SHAPE) * 1e-6 * (1 + noise)

            return milliseconds

    stopwatch = Stopwatch()
    monkeypatch.setattr(latency, "beside", stopwatch.beside)
    return stopwatch


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("keep", [0.6, *(pytest.param(keep, marks=pytest.mark.extra) for keep in (0.9, 0.25))])
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


@pytest.mark.parametrize("keep", [0.8, 0.3])
def test_parameters_end_closest_below_the_target(network, keep):
    whole = parameters(network)
    step = Channel(keep_parameters=keep)(SPEC, network, iter(()))
    assert keep - 0.06 < parameters(network) / whole <= keep
    assert step.arguments["keep_parameters"] == keep and "keep_macs" not in step.arguments


OTHERS = ("l1", "bn_scale", "hessian", "lamp", "random")


@pytest.mark.parametrize(
    "importance", ["l2", "taylor", *(pytest.param(name, marks=pytest.mark.extra) for name in OTHERS)]
)
def test_every_importance_reaches_the_target_and_is_replayed(network, importance, tmp_path):
    whole = macs(network, SHAPE)
    step = Channel(keep_macs=0.5, importance=importance)(SPEC, network, batches())
    assert 0.42 < macs(network, SHAPE) / whole <= 0.5
    checkpoint.save(tmp_path, SPEC.model_copy(update={"pruning": (step,)}), network)
    images = torch.randn(2, *SHAPE)
    assert torch.equal(checkpoint.load(tmp_path)[1](images), network(images))


def test_bn_scale_is_the_mean_scale_of_the_batch_norms_of_a_group(network):
    found = scores(network, "bn_scale")
    blocks = network.blocks
    torch.testing.assert_close(found["blocks.0.conv1"], blocks[0].bn1.weight.abs().detach())
    joined = torch.stack([network.stem[1].weight, blocks[0].bn2.weight]).abs().mean(dim=0).detach()
    torch.testing.assert_close(found["stem.0"], joined)


def test_bn_scale_without_batch_norms_is_refused(network):
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    with pytest.raises(
        ModelError, match=r"importance 'bn_scale' scores a channel by the scale of its batch norms, and no "
    ):
        Channel(keep_macs=0.5, importance="bn_scale")(SPEC, network, iter(()))


def test_lamp_divides_the_squared_norm_by_that_of_all_that_are_no_smaller(network):
    conv, norm, reader = network.blocks[0].conv1, network.blocks[0].bn1, network.blocks[0].conv2
    parts = [conv.weight.square().sum((1, 2, 3)), norm.weight.square(), reader.weight.square().sum((0, 2, 3))]
    norms = torch.stack(parts).mean(dim=0).detach()
    expected = torch.stack([one / norms[norms >= one].sum() for one in norms])
    torch.testing.assert_close(scores(network, "lamp")["blocks.0.conv1"], expected, rtol=1e-4, atol=1e-6)


def loss_slopes(network, readers, image, label):
    """(channels,): sum of weight times gradient of one image's loss over all weights that read a channel."""
    network.zero_grad()
    F.cross_entropy(network(image[None]), label[None]).backward()
    slopes = sum((reader.weight * reader.weight.grad).transpose(0, 1).flatten(1).sum(1) for reader in readers)
    network.zero_grad()
    return slopes.detach()


@pytest.mark.parametrize("group", ["blocks.0.conv1", "stem.0"])
def test_taylor_and_hessian_are_what_the_weights_that_read_a_channel_do_to_the_loss(network, group):
    """A factor on what a layer reads acts as one on all weights that read it."""
    blocks = network.blocks
    readers = {"blocks.0.conv1": [blocks[0].conv2], "stem.0": [blocks[0].conv1, blocks[1].conv1, blocks[1].shortcut[0]]}
    images = list(batches(2))
    slopes = torch.stack(
        [
            torch.stack([loss_slopes(network, readers[group], *pair) for pair in zip(*batch, strict=True)])
            for batch in images
        ]
    )
    taylor, hessian = (scores(network, name, images=images)[group] for name in ("taylor", "hessian"))
    torch.testing.assert_close(taylor, slopes.mean(dim=1).square().mean(dim=0), rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(hessian, slopes.square().mean(dim=(0, 1)) / 2, rtol=1e-3, atol=1e-9)


def test_the_head_reads_the_last_channels_for_taylor(network):
    """Through pooling and flattening, where one channel is one input of a linear layer."""
    found = scores(network, "taylor", images=batches(1))
    ((images, labels),) = batches(1)
    slopes = [loss_slopes(network, [network.head], image, label) for image, label in zip(images, labels, strict=True)]
    joined = next(layer for layer in found if layer in ("blocks.1.conv2", "blocks.1.shortcut.0"))
    torch.testing.assert_close(found[joined], torch.stack(slopes).mean(dim=0).square(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_channels_that_nothing_reads_go_first(network, importance):
    with torch.no_grad():
        network.blocks[0].conv2.weight[:, [2, 5, 11]] = 0.0
    images = torch.randn(5, *SHAPE)
    answers = network(images)
    step = Channel(keep_macs=0.93, importance=importance)(SPEC, network, batches())
    assert step.removed == {"blocks.0.conv1": (2, 5, 11)} or set(step.removed["blocks.0.conv1"]) < {2, 5, 11}
    torch.testing.assert_close(network(images), answers, rtol=1e-4, atol=1e-4)


def test_looking_at_data_leaves_nothing_behind(network):
    Channel(keep_macs=0.9, importance="taylor")(SPEC, network, batches())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_taylor_without_images_is_refused(network):
    with pytest.raises(ModelError, match=r"importance is 'taylor', which looks at images, but there were none"):
        Channel(keep_macs=0.5, importance="taylor")(SPEC, network, iter(()))


def test_chance_follows_from_the_seed(network):
    one, again, other = (scores(network, "random", seed)["stem.0"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_latency_is_searched_for_with_few_timings_and_written_down(network, stopwatch):
    step = Channel(keep_latency=0.5)(SPEC, network, iter(()))
    before, after = step.arguments["latency_ms_before"], step.arguments["latency_ms_after"]
    assert 0.4 < after / before <= 0.5 and after == macs(network, SHAPE) * 1e-6
    assert stopwatch.timings <= 8


def test_a_noisy_clock_still_ends_near_the_target_and_is_told_of(network, stopwatch, caplog):
    stopwatch.noise = (0.04, -0.04, 0.02, -0.03, 0.05)
    with caplog.at_level(logging.WARNING):
        step = Channel(keep_latency=0.5)(SPEC, network, iter(()))
    kept = step.arguments["latency_ms_after"] / step.arguments["latency_ms_before"]
    assert 0.35 < kept < 0.6
    assert (kept > 0.5) == (
        "was inside pruner.keep_latency (0.5000 in this round), but measured once more" in caplog.text
    )


def test_a_latency_out_of_reach_is_refused_before_anything_is_pruned(network, stopwatch):
    whole = macs(network, SHAPE)
    with pytest.raises(
        ModelError, match=r"pruner\.keep_latency is 0\.1, but the least that resnet can keep with round_to 8 "
    ):
        Channel(keep_latency=0.1, round_to=8)(SPEC, network, iter(()))
    assert macs(network, SHAPE) == whole


@pytest.mark.extra
@pytest.mark.integration
@pytest.mark.slow
def test_latency_is_that_of_onnx_runtime(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.02)
    spec = SPEC.model_copy(update={"arguments": {"width": 4, "blocks": [1]}})
    network = checkpoint.build(spec).eval()
    measure = latency.beside(spec, network)
    Channel(keep_macs=0.3)(spec, network, iter(()))
    assert min(measure(network)) > 0.0


def test_latency_out_of_reach_names_widths_that_are_fast(network, stopwatch):
    with pytest.raises(ModelError, match=r"try another round_to \(8 and 16 fill the kernels\) or raise max_ratio"):
        Channel(keep_latency=0.01)(SPEC, network, iter(()))


@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_widths_that_bring_no_speed_are_warned_of(network, round_to, caplog):
    with caplog.at_level(logging.WARNING):
        step = Channel(keep_macs=0.6, round_to=round_to)(SPEC, network, iter(()))
    unfilled = [f"{layer} {step.widths[layer][1]}" for layer in step.removed if step.widths[layer][1] % 8]
    assert bool(unfilled) is (round_to < 8)
    said = (
        f"channel: {len(unfilled)} of {len(step.removed)} pruned layers have widths that ONNX Runtime's float kernels "
    )
    assert (said + f"cannot fill ({', '.join(unfilled)})" in caplog.text) is (round_to < 8)
    assert bool(caplog.text) is (round_to < 8)


def test_of_many_rounds_only_the_last_is_warned_of(network, caplog):
    with caplog.at_level(logging.WARNING):
        *_, _ = in_rounds(network, Channel(keep_macs=0.6, round_to=4), 2)
    assert caplog.text.count("float kernels cannot fill") == 1


@pytest.mark.parametrize("target", ["keep_macs", "keep_parameters", "keep_latency"])
def test_rounds_near_the_target_in_even_steps(network, target, stopwatch):
    size = parameters if target == "keep_parameters" else lambda one: macs(one, SHAPE)
    whole = size(network)
    for place, spec in enumerate(in_rounds(network, Channel(**{target: 0.4}), 3)):
        share = 0.4 ** ((place + 1) / 3)
        assert share - 0.08 < size(network) / whole <= share
        assert spec.pruning[-1].arguments["round"] == place + 1 and spec.pruning[-1].arguments["rounds"] == 3
    assert parameters(checkpoint.build(spec)) == parameters(network)


def test_limits_hold_over_all_rounds_together(network):
    pruner = Channel(keep_macs=0.4, max_ratio=0.5, layer_ratios={"blocks.0.conv1": 0.125})
    *_, spec = in_rounds(network, pruner, 4)
    lost = [len(step.removed.get("blocks.0.conv1", ())) for step in spec.pruning]
    assert sum(lost) == 2 and network.stem[0].out_channels >= 8 and network.blocks[1].conv2.out_channels >= 16


def test_a_round_whose_share_is_gone_already_removes_nothing(network):
    *_, spec = in_rounds(network, Channel(keep_macs=0.5, round_to=8), 8)
    assert any(not step.removed for step in spec.pruning) and macs(network, SHAPE) <= 0.5 * macs(
        checkpoint.build(SPEC), SHAPE
    )


def test_the_first_of_many_rounds_refuses_what_the_last_cannot_reach(network):
    with pytest.raises(ModelError, match=r"pruner\.keep_macs is 0\.1, but the least that resnet can keep"):
        Channel(keep_macs=0.1, round_to=8).rounds(4)[0](SPEC, network, iter(()))


def test_a_layer_loses_no_more_than_its_own_ratio(network):
    step = Channel(keep_macs=0.5, layer_ratios={"blocks.0.conv1": 0.0, "blocks.1.*": 0.25})(SPEC, network, iter(()))
    assert "blocks.0.conv1" not in step.removed
    assert all(step.widths[f"blocks.1.{layer}"][1] >= 24 for layer in ("conv1", "conv2", "shortcut.0"))
    assert step.arguments["layer_ratios"] == {"blocks.0.conv1": 0.0, "blocks.1.*": 0.25}


def test_what_is_said_of_one_layer_holds_for_those_it_is_added_to(network):
    step = Channel(keep_macs=0.5, layer_ratios={"blocks.0.conv2": 0.0})(SPEC, network, iter(()))
    assert "stem.0" not in step.removed and "blocks.0.conv2" not in step.removed and step.removed


def test_the_smallest_of_several_ratios_holds(network):
    ratios = {"*": 0.5, "blocks.0.conv1": 0.75}
    step = Channel(keep_macs=0.4, layer_ratios=ratios)(SPEC, network, iter(()))
    assert step.widths["blocks.0.conv1"][1] >= 8


def test_a_pattern_that_fits_no_layer_is_refused_with_the_near_miss(network):
    whole = macs(network, SHAPE)
    with pytest.raises(SettingsError) as raised:
        Channel(keep_macs=0.5, layer_ratios={"block.0.conv1": 0.5})(SPEC, network, iter(()))
    text = str(raised.value)
    assert text.startswith("pruner.layer_ratios names 'block.0.conv1', which fits no layer that can lose channels")
    assert "stem.0" in text and "head" not in text and text.endswith("; did you mean 'blocks.0.conv1'?")
    assert macs(network, SHAPE) == whole


def test_ratios_that_leave_nothing_to_prune_are_named(network):
    with pytest.raises(
        ModelError, match=r"or raise pruner\.max_ratio \(0\.9\) and pruner\.layer_ratios \{'\*': 0\.0\}"
    ):
        Channel(keep_macs=0.5, layer_ratios={"*": 0.0})(SPEC, network, iter(()))


@pytest.mark.parametrize("ratio", [1.0, -0.1])
def test_a_ratio_lets_a_layer_keep_something(ratio):
    with pytest.raises(SettingsError, match=rf"pruners.channel: layer_ratios.stem.0 is {ratio}: Input should be"):
        components.build("pruners", "channel", {"keep_macs": 0.5, "layer_ratios": {"stem.0": ratio}})


def test_no_target_is_refused():
    with pytest.raises(
        SettingsError, match="takes exactly one target, keep_macs, keep_parameters or keep_latency, and got none"
    ):
        components.build("pruners", "channel", {})


def test_two_targets_are_refused_by_name():
    with pytest.raises(SettingsError) as raised:
        components.build("pruners", "channel", {"keep_macs": 0.5, "keep_latency": 0.7})
    assert "got keep_macs (0.5) and keep_latency (0.7): give one" in str(raised.value)
    assert "by setting it to null" in str(raised.value)


def test_a_target_is_taken_back_by_null():
    pruner = components.build("pruners", "channel", {"keep_macs": None, "keep_latency": 0.7})
    assert (pruner.target, pruner.keep) == ("keep_latency", 0.7)


@pytest.mark.parametrize("name", ["keep_parameters", "keep_latency"])
@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_every_target_lies_between_0_and_1(name, keep):
    with pytest.raises(SettingsError, match=f"pruners.channel: {name} is {keep}"):
        components.build("pruners", "channel", {name: keep})
