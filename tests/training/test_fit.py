import pytest
from training_jobs import FIT, PLAIN, job

from pipeline.data.manifest import load_manifest
from pipeline.errors import ModelError, SettingsError
from pipeline.models import checkpoint, size
from pipeline.settings.training import Distributed
from pipeline.training.fit import check_same_task, new_spec, read_history, train_job


def test_a_model_of_other_labels_or_images_is_refused(tiny_data):
    manifest = load_manifest(tiny_data)
    spec = new_spec(PLAIN, manifest)
    check_same_task("teacher", spec, manifest)
    with pytest.raises(
        ModelError, match=r"the teacher knows the labels a, b, but the data set tiny has nw, ne, sw, se"
    ):
        check_same_task("teacher", spec.model_copy(update={"labels": ("a", "b")}), manifest)
    wide = spec.inputs[0].model_copy(update={"shape": (1, 16, 16)})
    with pytest.raises(ModelError, match=r"the student takes images of shape \(1, 16, 16\), but the data set tiny has"):
        check_same_task("student", spec.model_copy(update={"inputs": (wide,)}), manifest)


def test_a_trained_job_leaves_curves_and_its_metrics_are_those_of_the_best_epoch(tiny_data, tmp_path, here):
    the_job = job(tiny_data, tmp_path, FIT, PLAIN)
    metrics = train_job(the_job, Distributed())
    best = max(read_history(the_job.out), key=lambda row: (row["validation_accuracy"], row["epoch"]))
    assert metrics["validation_accuracy"] == best["validation_accuracy"] and metrics["best_epoch"] == best["epoch"]
    assert metrics["epochs"] == 3 and metrics["parameters"] == size.parameters(checkpoint.load(the_job.out)[1])
    assert (the_job.out / "plots" / "learning_curves.png").stat().st_size > 1000


def test_a_batch_that_cannot_be_filled_is_refused_before_a_process_starts(tiny_data, tmp_path):
    with pytest.raises(SettingsError, match=r"train\.fit\.batch_size is 512, but there are 330 training images"):
        train_job(job(tiny_data, tmp_path, FIT.model_copy(update={"batch_size": 512})), Distributed())
