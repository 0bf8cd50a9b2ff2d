import json
import logging
import shutil

import pytest
import torch
from training_toys import files, trained_once

from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.settings.training import Distill, Distributed, Fit
from pipeline.stages.distill import distill
from pipeline.training.fit import train_job

FIT = Fit(epochs=5, batch_size=32, lr=0.1, crop_padding=1, horizontal_flip=False)
CONFIG = Distill(model=Component(name="resnet", width=4, blocks=[1, 1]), fit=FIT)


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A teacher; `teacher` copies it."""
    return trained_once(tiny_data, tmp_path_factory.mktemp("teacher"), FIT)


@pytest.fixture
def teacher(trained, tmp_path, here):
    return shutil.copytree(trained, tmp_path / "teacher")


def run(config, tiny_data, teacher, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    scratch = tmp_path / "scratch"
    return out, distill(
        config, data=tiny_data, teacher=teacher, distributed=Distributed(), seed=1, out=out, scratch=scratch
    )


def test_a_student_learns_from_its_teacher(tiny_data, teacher, tmp_path):
    before = (teacher / "model.safetensors").read_bytes()
    out, metrics = run(CONFIG, tiny_data, teacher, tmp_path)
    assert files(out) == {"model.json", "model.safetensors", "history.json", "plots/learning_curves.png"}
    assert checkpoint.load(out)[0].arguments["width"] == 4 and metrics["validation_accuracy"] > 0.8
    assert (teacher / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("alone", "kept"), [(0.1, "distilled"), pytest.param(1.1, "alone", marks=pytest.mark.extra)])
def test_of_distilled_and_alone_the_better_is_kept(tiny_data, teacher, tmp_path, monkeypatch, alone, kept):
    outs = {}

    def scored(job, settings):
        metrics = dict(train_job(job, settings))
        outs["distilled" if job.teacher else "alone"] = job.out
        return metrics if job.teacher else {**metrics, "validation_accuracy": alone}

    monkeypatch.setattr("pipeline.stages.distill.train_job", scored)
    out, metrics = run(CONFIG.model_copy(update={"baseline": True}), tiny_data, teacher, tmp_path)
    record = json.loads((out / "baseline.json").read_text())
    assert record["kept"] == kept and record["validation_accuracy"]["alone"] == alone
    assert metrics["baseline_validation_accuracy"] == alone
    assert metrics["distillation_gain"] == pytest.approx(record["validation_accuracy"]["distilled"] - alone)
    mine, theirs = (checkpoint.load(where)[1].state_dict() for where in (out, outs[kept]))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert files(out) > {"baseline.json", "history.json", "plots/learning_curves.png"}


def test_a_student_that_is_no_smaller_is_warned_of(tiny_data, teacher, tmp_path, caplog):
    config = CONFIG.model_copy(update={"model": Component(name="resnet", width=8, blocks=[1, 1])})
    with caplog.at_level(logging.WARNING):
        run(config, tiny_data, teacher, tmp_path)
    assert "the student (distill.model) needs" in caplog.text and "it will not be faster" in caplog.text


def test_label_smoothing_without_effect_is_warned_of(tiny_data, teacher, tmp_path, caplog):
    config = CONFIG.model_copy(update={"fit": FIT.model_copy(update={"label_smoothing": 0.1})})
    run(config, tiny_data, teacher, tmp_path)
    assert "distill.fit.label_smoothing is 0.1, which a distillation loss does not use" in caplog.text


def test_a_teacher_of_other_labels_is_refused(tiny_data, teacher, tmp_path):
    spec, network = checkpoint.load(teacher)
    other = spec.model_copy(update={"labels": ("a", "b", "c", "d")})
    checkpoint.save(teacher, other, network)
    with pytest.raises(
        ModelError, match="the teacher knows the labels a, b, c, d, but the data set tiny has nw, ne, sw, se"
    ):
        run(CONFIG, tiny_data, teacher, tmp_path)


def test_a_loss_with_a_wrong_setting_is_refused(tiny_data, teacher, tmp_path):
    config = CONFIG.model_copy(update={"loss": Component(name="kd", temprature=3.0)})
    with pytest.raises(SettingsError, match=r"losses\.kd has no setting 'temprature'.*did you mean 'temperature'"):
        run(config, tiny_data, teacher, tmp_path)
