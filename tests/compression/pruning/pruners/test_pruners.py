"""Every file of `pruners/` keeps the contract of `types.Pruner`."""

import subprocess
import sys

import pytest
import torch

from pipeline import components
from pipeline.compression.quantization import fake_quant
from pipeline.models import checkpoint
from pipeline.models.size import macs, parameters
from pipeline.models.spec import Preprocessing, image_classifier

SHAPE = (1, 12, 12)
SPEC = image_classifier(
    "resnet", {"width": 8, "blocks": [1, 1]}, SHAPE, tuple("abcd"), Preprocessing(mean=(0.0,), std=(1.0,))
)
ARGUMENTS = {
    "channel": {"keep_macs": 0.6, "round_to": 4},
    "depth": {"drop": 1},
    "low_rank": {"keep_macs": 0.6, "round_to": 2},
    "unstructured": {"sparsity": 0.5},
}


def batches():
    chance = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(8, *SHAPE, generator=chance), torch.randint(0, 4, (8,), generator=chance)


def build(name):
    return components.build("pruners", name, ARGUMENTS.get(name, {}))


def fresh():
    torch.manual_seed(0)
    return checkpoint.build(SPEC).eval()


@pytest.fixture(params=components.names("pruners"))
def name(request):
    return request.param


@pytest.fixture
def pruned(name):
    """(network before, network after, step)"""
    before, after = fresh(), fresh()
    return before, after, build(name)(SPEC, after, batches())


def test_the_network_became_smaller_in_place_or_got_zeros(pruned):
    before, after, step = pruned
    if step.zeros:
        assert macs(after, SHAPE) == macs(before, SHAPE) and parameters(after) == parameters(before)
        for layer, share in step.zeros.items():
            weight = after.get_submodule(layer).weight
            assert share == pytest.approx(float((weight == 0).float().mean())) and 0.0 < share < 1.0
    else:
        assert macs(after, SHAPE) < macs(before, SHAPE) and parameters(after) < parameters(before)


def test_it_still_takes_the_image_and_answers_every_label(pruned):
    assert pruned[1](torch.randn(3, *SHAPE)).shape == (3, 4)


def test_it_can_learn_on(pruned):
    _, after, _ = pruned
    assert not any(module.training for module in after.modules())
    assert all(weight.is_leaf and weight.requires_grad and weight.grad is None for weight in after.parameters())


def test_the_step_rebuilds_it(pruned, tmp_path):
    _, after, step = pruned
    checkpoint.save(tmp_path, SPEC.model_copy(update={"pruning": (step,)}), after)
    images = torch.randn(3, *SHAPE)
    assert torch.equal(checkpoint.load(tmp_path)[1](images), after(images))


def test_the_step_says_what_was_done(pruned, name):
    before, after, step = pruned
    assert step.method == name and (step.dropped or step.ranks or step.removed or step.zeros)
    for layer, channels in step.removed.items():
        wide = before.get_submodule(layer).weight.shape[0]
        assert step.widths[layer][1] == wide - len(channels) and set(channels) < set(range(wide))
    changed = {layer for layer, _ in before.named_modules()} - {layer for layer, _ in after.named_modules()}
    assert all(layer.startswith(tuple(f"{block}." for block in step.dropped)) for layer in changed)


def test_one_round_is_the_pruner_itself(pruned, name):
    _, after, step = pruned
    [only] = build(name).rounds(1)
    again = fresh()
    assert only(SPEC, again, batches()) == step
    images = torch.randn(3, *SHAPE)
    assert torch.equal(again(images), after(images))


def test_more_rounds_come_as_asked_for_or_as_many_as_there_can_be(name):
    assert len(build(name).rounds(3)) == {"depth": 1, "low_rank": 1, "n_m": 1}.get(name, 3)


@pytest.mark.extra
@pytest.mark.integration
def test_a_chain_of_all_answers_alike_in_a_new_process(tmp_path):
    """Weights come back from safetensors, the shape from the plan; no pruner is asked again."""
    spec = SPEC.model_copy(update={"arguments": {"width": 16, "blocks": [2, 1]}})
    network = checkpoint.build(spec).eval()
    chain = ("depth", "low_rank", "channel", "unstructured", "n_m")
    assert sorted(chain) == components.names("pruners")
    for name in chain:
        step = build(name)(spec, network, batches())
        spec = spec.model_copy(update={"pruning": (*spec.pruning, step)})
        checkpoint.save(tmp_path / name, spec, network)
        torch.save(network(torch.linspace(-1, 1, 288).view(2, *SHAPE)), tmp_path / name / "answers.pt")
    spec, network = fake_quant.fold(spec, network)  # as training with quantization leaves it
    checkpoint.save(tmp_path / "folded", spec, network)
    torch.save(network(torch.linspace(-1, 1, 288).view(2, *SHAPE)), tmp_path / "folded" / "answers.pt")
    program = (
        "import sys, torch; from pathlib import Path; from pipeline.models import checkpoint\n"
        "for directory in Path(sys.argv[1]).iterdir():\n"
        "    network = checkpoint.load(directory)[1]\n"
        "    answers = torch.load(directory / 'answers.pt', weights_only=True)\n"
        "    assert torch.equal(network(torch.linspace(-1, 1, 288).view(2, 1, 12, 12)), answers), directory\n"
        "    print(directory.name)\n"
        "assert not [module for module in sys.modules if module.startswith(('torch_pruning', 'pipeline.pruners'))]"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted([*chain, "folded"])
