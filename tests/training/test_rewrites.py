import json

import pytest
import torch
from training_jobs import FIT, PLAIN, curves, history, job, run, weights

from pipeline.compression.pruning.sparsity import KeepSparsity
from pipeline.compression.quantization import fake_quant
from pipeline.compression.quantization.fake_quant import FakeQuant, Grid, Levels, Rounding
from pipeline.data.manifest import load_manifest
from pipeline.data.split import open_split
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.training.fit import new_spec
from pipeline.training.loop import Training
from pipeline.training.rewrites import make, rewrite
from pipeline.training.validation import evaluate

PLAN = FakeQuant(
    grids=(Grid(tensors=("relu",), nodes=("relu",), scale=0.02, zero_point=0, low=0, high=255, learned=True),),
    weights={"conv.weight": Levels(count=127, axis=0), "head.weight": Levels(count=127, axis=0)},
)
ROUNDED = rewrite(Rounding, plan=PLAN.model_dump(mode="json"))


def rounded_job(data, where, fit=FIT):
    spec = new_spec(PLAIN, load_manifest(data))
    torch.manual_seed(1)
    checkpoint.save(where / "start", spec, checkpoint.build(spec))
    return job(data, where, fit, PLAIN, start=where / "start", rewrites=(ROUNDED,))


def test_a_training_that_rounds_leaves_a_plain_checkpoint_evaluated_as_quantized(tiny_data, tmp_path):
    out = run(rounded_job(tiny_data, tmp_path))
    assert {path.name for path in out.iterdir()} == {"model.json", "model.safetensors", "history.json", "ranges.json"}
    spec, network = checkpoint.load(out)
    assert set(weights(out)) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert not torch.equal(weights(out)["conv.weight"], weights(tmp_path / "start")["conv.weight"])
    low, high = json.loads((out / "ranges.json").read_text())["relu"]
    assert low == 0.0 and high != pytest.approx(0.02 * 255, rel=1e-6), "the step is learned"
    grid = PLAN.grids[0].model_copy(update={"scale": high / 255})
    simulated = fake_quant.simulate(spec, network, PLAN.model_copy(update={"grids": (grid,)}))
    accuracy, _ = evaluate(simulated, spec, open_split(tiny_data, "validation"))
    assert accuracy == max(row["validation_accuracy"] for row in history(out))


def test_a_resumed_training_that_rounds_ends_like_one_that_was_never_stopped(tiny_data, tmp_path):
    fit = FIT.model_copy(update={"epochs": 2, "ema_decay": 0.9})
    whole = run(rounded_job(tiny_data, tmp_path / "whole", fit))
    broken = rounded_job(tiny_data, tmp_path / "broken", fit)
    Training(broken).run_epoch()
    resumed = run(broken)
    assert curves(resumed) == curves(whole)
    assert (resumed / "ranges.json").read_text() == (whole / "ranges.json").read_text()
    before, after = weights(whole), weights(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)


class Narrow(torch.nn.Module):
    """A strided 1x1 convolution of few channels: what oneDNN overruns."""

    def __init__(self, in_channels, classes):
        super().__init__()
        self.wide, self.narrow = torch.nn.Conv2d(in_channels, 4, 3), torch.nn.Conv2d(4, classes, 1, 2)

    def forward(self, x):
        return self.narrow(self.wide(x)).mean((2, 3))


def test_a_narrow_network_is_kept_from_onednn_when_it_was_traced_too(tiny_data, tmp_path):
    spec = new_spec(Component(name=f"{__name__}:Narrow"), load_manifest(tiny_data))
    checkpoint.save(tmp_path / "start", spec, checkpoint.build(spec))
    plan = FakeQuant(grids=(), weights={"narrow.weight": Levels(count=127, axis=0)})
    rounded = rewrite(Rounding, plan=plan.model_dump(mode="json"))
    the_job = job(
        tiny_data, tmp_path, FIT, Component(name=f"{__name__}:Narrow"), start=tmp_path / "start", rewrites=(rounded,)
    )
    assert Training(the_job).unsafe


def test_zeros_stay_zero_while_the_rest_is_trained(tiny_data, tmp_path):
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    network = checkpoint.build(spec)
    with torch.no_grad():
        network.conv.weight[::2] = 0.0
    checkpoint.save(tmp_path / "start", spec, network)
    fit = FIT.model_copy(update={"epochs": 1, "ema_decay": 0.9})
    out = run(job(tiny_data, tmp_path, fit, PLAIN, start=tmp_path / "start", rewrites=(rewrite(KeepSparsity),)))
    trained = weights(out)["conv.weight"]
    assert not trained[::2].any() and bool((trained[1::2] != network.conv.weight[1::2]).any())
    assert bool(weights(out)["head.weight"].all())


def test_a_rewrite_is_named_by_data_and_made_again_from_it():
    spec = type(ROUNDED).model_validate_json(ROUNDED.model_dump_json())
    assert spec == ROUNDED and spec.name == "pipeline.compression.quantization.fake_quant:Rounding"
    made = make(spec)
    assert isinstance(made, Rounding) and made.plan == PLAN
