import pytest
import torch
from training_jobs import FIT, PLAIN, history, job, run, weights

from pipeline.data.manifest import load_manifest
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.training import teacher
from pipeline.training.fit import new_spec


def test_teacher_and_student_see_the_same_view(tiny_data, tmp_path):
    """A student that equals its teacher loses nothing against it on augmented views, and so never changes."""
    manifest = load_manifest(tiny_data)
    spec = new_spec(PLAIN, manifest)
    checkpoint.save(tmp_path / "teacher", spec, checkpoint.build(spec))
    fit = FIT.model_copy(
        update={"random_erasing": 1.0, "horizontal_flip": True, "epochs": 1, "weight_decay": 0.0, "amp": "off"}
    )
    loss = Component(name="kd", temperature=2.0, alpha=1.0)
    out = run(job(tiny_data, tmp_path, fit, PLAIN, start=tmp_path / "teacher", teacher=tmp_path / "teacher", loss=loss))
    assert history(out)[0]["train_loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("padding", "asked"), [(0, 11), (1, 30)])
def test_a_teachers_logits_are_calculated_once_for_views_that_never_change(
    tiny_data, tmp_path, monkeypatch, padding, asked
):
    """And the student learns as if the teacher ran again for each batch."""
    monkeypatch.setattr(teacher, "EVALUATION_BATCH", 32)  # 330 images: 11 batches, or 3 epochs of 10 whole ones
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    checkpoint.save(tmp_path / "teacher", spec, checkpoint.build(spec))
    fit = FIT.model_copy(update={"crop_padding": padding, "amp": "off"})
    more = {"teacher": tmp_path / "teacher", "loss": Component(name="kd", alpha=1.0)}
    logits, views = teacher.Teacher._logits, []
    monkeypatch.setattr(teacher.Teacher, "_logits", lambda self, view: views.append(view) or logits(self, view))
    once = weights(run(job(tiny_data, tmp_path / "once", fit, **more)))
    assert len(views) == asked
    again = weights(run(job(tiny_data, tmp_path / "again", fit, **more)))
    assert len(views) == asked + (30 if padding else 0), "the answers are kept for the next training"
    assert all(torch.equal(weight, again[name]) for name, weight in once.items())
    views.clear()
    monkeypatch.setattr(teacher, "_REMEMBERED_BYTES", 0)
    each_time = weights(run(job(tiny_data, tmp_path / "each", fit, **more)))
    assert len(views) == 30
    for name, weight in once.items():
        torch.testing.assert_close(weight, each_time[name], rtol=1e-3, atol=1e-4)
