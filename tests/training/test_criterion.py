import pytest
import torch
from torch.nn import functional as F
from training_jobs import FIT, PLAIN, curves, job, run, same, weights

from pipeline.data.manifest import load_manifest
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.training.criterion import Criterion
from pipeline.training.fit import new_spec
from pipeline.training.loop import Training

LOSS = Component(name="training_toys:FixedStart")
SHORT = FIT.model_copy(update={"amp": "off", "horizontal_flip": True, "random_erasing": 0.5})


@pytest.fixture
def teacher(tiny_data, tmp_path):
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    torch.manual_seed(2)
    checkpoint.save(tmp_path / "teacher", spec, checkpoint.build(spec))
    return tmp_path / "teacher"


def test_without_a_loss_it_is_the_cross_entropy_with_smoothed_labels():
    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    value = Criterion(None, 0.1, torch.device("cpu"))(logits, None, labels)
    assert torch.equal(value, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_a_loss_need_not_be_a_module():
    criterion = Criterion(Component(name="training_toys:Difference"), 0.0, torch.device("cpu"))
    assert float(criterion(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2))) == 1.0


def test_what_a_loss_has_is_learned_beside_the_network_and_kept_out_of_the_checkpoint(tiny_data, teacher, tmp_path):
    the_job = job(tiny_data, tmp_path, SHORT, PLAIN, teacher=teacher, loss=LOSS)
    training = Training(the_job)
    before = {name: tensor.clone() for name, tensor in training.criterion.named_parameters()}
    training.run_epoch()
    changed = {
        name.removeprefix("loss.")
        for name, tensor in training.criterion.named_parameters()
        if not tensor.equal(before[name])
    }
    assert changed == {"log_temperature", "projection.weight", "projection.bias", "unused"}, "unused: weight decay"
    decayed, spared = training.optimizer.param_groups
    held = dict(training.criterion.named_parameters())
    assert any(one is held["loss.projection.weight"] for one in decayed["params"])
    assert any(one is held["loss.log_temperature"] for one in spared["params"])
    assert set(weights(run(the_job))) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_whose_loss_learns_is_resumed_bit_for_bit(tiny_data, teacher, tmp_path, optimizer):
    fit = SHORT.model_copy(update={"optimizer": optimizer, "lr": 0.01})
    whole = run(job(tiny_data, tmp_path / "whole", fit, PLAIN, teacher=teacher, loss=LOSS))
    broken = job(tiny_data, tmp_path / "broken", fit, PLAIN, teacher=teacher, loss=LOSS)
    Training(broken).run_epoch()
    resumed = run(broken)
    assert curves(resumed) == curves(whole) and same(resumed, whole)
