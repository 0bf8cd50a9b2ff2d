from training_jobs import FIT, PLAIN, job

from pipeline.data.manifest import load_manifest
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.training.fit import new_spec
from pipeline.training.job import TrainingJob
from pipeline.training.rewrites import RewriteSpec


def test_a_job_crosses_to_its_processes_as_json(tiny_data, tmp_path):
    rewrites = (RewriteSpec(name="package.module:Class", arguments={"plan": {"levels": [1, 2]}}),)
    the_job = job(tiny_data, tmp_path, loss=Component(name="kd", alpha=0.5), rewrites=rewrites)
    assert TrainingJob.model_validate_json(the_job.model_dump_json()) == the_job


def test_the_fingerprint_is_of_what_the_weights_depend_on(tiny_data, tmp_path):
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, spec, checkpoint.build(spec))
    first = job(tiny_data, tmp_path, start=tmp_path / "a")
    elsewhere = {"what": "again", "scratch": tmp_path / "x", "out": tmp_path / "y", "part": (1, 2)}
    assert first.model_copy(update=elsewhere).fingerprint == first.fingerprint
    changes = [
        {"seed": 4},
        {"fit": FIT.model_copy(update={"lr": 0.2})},
        {"start": tmp_path / "b"},
        {"loss": Component(name="kd")},
        {"rewrites": (RewriteSpec(name="package.module:Class"),)},
    ]
    prints = {first.fingerprint, *(first.model_copy(update=change).fingerprint for change in changes)}
    assert len(prints) == 1 + len(changes)
