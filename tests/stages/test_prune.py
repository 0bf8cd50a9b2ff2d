import shutil

import pytest
import torch
from training_toys import trained_once

from pipeline.compression.pruning.sparsity import zeros_share
from pipeline.data.split import open_split
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.models.spec import load_spec
from pipeline.settings.base import Component
from pipeline.settings.compression import Prune
from pipeline.settings.training import Distributed, Fit
from pipeline.stages.prune import prune
from pipeline.training.validation import evaluate

FIT = Fit(epochs=2, batch_size=32, lr=0.1, crop_padding=1, horizontal_flip=False)
CONFIG = Prune(pruner=Component(name="channel", keep_macs=0.5), fit=FIT)


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A student; `student` copies it."""
    return trained_once(tiny_data, tmp_path_factory.mktemp("student"), FIT)


@pytest.fixture
def student(trained, tmp_path, here):
    return shutil.copytree(trained, tmp_path / "student")


def run(config, tiny_data, student, tmp_path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    metrics = prune(
        config, data=tiny_data, teacher=student, student=student,
        distributed=Distributed(), seed=1, out=out, scratch=scratch,
    )  # fmt: skip
    return out, metrics


def test_a_pruned_student_is_smaller_and_recovers(tiny_data, student, tmp_path):
    out, metrics = run(CONFIG, tiny_data, student, tmp_path)
    spec, network = checkpoint.load(out)
    old_spec, old = checkpoint.load(student)
    validation = open_split(tiny_data, "validation")
    assert len(spec.pruning) == 1 and spec.pruning[0].method == "channel" and not old_spec.pruning
    assert metrics["macs_kept"] <= 0.5 and metrics["parameters_kept"] < 0.7 and metrics["channels_removed"] > 0
    assert metrics["validation_accuracy_before_pruning"] == evaluate(old, old_spec, validation)[0]
    assert metrics["validation_accuracy"] == evaluate(network, spec, validation)[0]
    assert metrics["validation_accuracy"] >= metrics["validation_accuracy_before_recovery"]
    assert (out / "history.json").exists() and (out / "plots" / "learning_curves.png").exists()


def test_recovery_begins_with_the_students_weights(tiny_data, student, tmp_path):
    fit = FIT.model_copy(update={"epochs": 1, "lr": 1e-12, "weight_decay": 0.0})
    out, _ = run(CONFIG.model_copy(update={"fit": fit}), tiny_data, student, tmp_path)
    spec, network = checkpoint.load(out)
    kept = [c for c in range(8) if c not in spec.pruning[0].removed.get("stem.0", ())]
    before = checkpoint.load(student)[1].stem[0].weight
    torch.testing.assert_close(network.stem[0].weight, before[kept])


def test_a_model_of_other_images_is_refused(tiny_data, student, tmp_path):
    spec, network = checkpoint.load(student)
    wide = spec.inputs[0].model_copy(update={"shape": (1, 16, 16)})
    checkpoint.save(student, spec.model_copy(update={"inputs": (wide,)}), network)
    with pytest.raises(ModelError, match=r"takes images of shape \(1, 16, 16\), but the data set tiny has \(1, 8, 8\)"):
        run(CONFIG, tiny_data, student, tmp_path)


def test_a_target_out_of_reach_is_refused(tiny_data, student, tmp_path):
    config = CONFIG.model_copy(update={"pruner": Component(name="channel", keep_macs=0.01, round_to=4)})
    with pytest.raises(ModelError, match=r"pruner\.keep_macs is 0\.01, but the least that resnet can keep"):
        run(config, tiny_data, student, tmp_path)


def test_pruners_follow_each_other_in_rounds_and_zeros_stay(tiny_data, student, tmp_path):
    """Channels in two rounds, then half of the weights of what is left in two more, each recovered."""
    update = {"then": (Component(name="unstructured", sparsity=0.5),), "rounds": 2}
    out, metrics = run(CONFIG.model_copy(update=update), tiny_data, student, tmp_path)
    spec, network = checkpoint.load(out)
    assert [step.method for step in spec.pruning] == ["channel", "channel", "unstructured", "unstructured"]
    assert metrics["macs_kept"] <= 0.5
    assert metrics["zeros_share"] == zeros_share(network) == pytest.approx(0.5, abs=0.02)


def chain(*components, rounds):
    first, *then = (Component(**one) for one in components)
    return CONFIG.model_copy(update={"pruner": first, "then": tuple(then), "rounds": rounds})


LOW_RANK, NM = {"name": "low_rank", "keep_macs": 0.5}, {"name": "n_m"}


@pytest.mark.parametrize(
    ("methods", "names", "most"),
    [((LOW_RANK, NM), "low_rank, n_m", 1), ((NM, {"name": "depth", "drop": 2}), "n_m, depth", 2)],
)
def test_rounds_that_no_method_can_take_are_refused_before_anything_is_read(methods, names, most, tmp_path):
    message = (
        rf"prune\.rounds is 3, but no pruner of prune\.pruner and prune\.then \({names}\) can be cut into more than "
    )
    with pytest.raises(SettingsError, match=message + f"{most}: set prune.rounds to {most}, or take one that can"):
        run(chain(*methods, rounds=3), tmp_path / "no data", tmp_path / "no student", tmp_path)


def test_what_a_later_pruner_cannot_reach_is_refused_before_the_first_recovery(
    tiny_data, student, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.stages.prune.train_job", lambda *_: pytest.fail("trained"))
    methods = {"name": "channel", "keep_macs": 0.7}, {"name": "channel", "keep_macs": 0.01, "round_to": 4}
    with pytest.raises(ModelError, match=r"pruner\.keep_macs is 0\.01, but the least that resnet can keep"):
        run(chain(*methods, rounds=1), tiny_data, student, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_sweep_limits_what_each_layer_loses(tiny_data, student, tmp_path):
    config = CONFIG.model_copy(
        update={"tolerated_drop": 1.0, "pruner": Component(name="channel", keep_macs=0.7, layer_ratios={"stem.0": 0.0})}
    )
    out, _ = run(config, tiny_data, student, tmp_path)
    assert (out / "sensitivity.json").exists() and (out / "plots" / "sensitivity.png").exists()
    (step,) = load_spec(out).pruning
    assert step.arguments["layer_ratios"]["stem.0"] == 0.0 and len(step.arguments["layer_ratios"]) > 1
    assert "stem.0" not in step.removed
