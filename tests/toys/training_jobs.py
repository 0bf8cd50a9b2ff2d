"""Small trainings for the tests of `pipeline/training`, run in the test's own process."""

import json

from pipeline.data.manifest import load_manifest
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.settings.training import Fit
from pipeline.training import job as training
from pipeline.training.fit import new_spec
from pipeline.training.job import TrainingJob

RESNET = Component(name="resnet", width=4, blocks=[1, 1])
PLAIN = Component(name="training_toys:Plain")
FIT = Fit(epochs=3, batch_size=32, lr=0.1, crop_padding=1, horizontal_flip=False)


def job(data, where, fit=FIT, model=RESNET, **more):
    spec = new_spec(model, load_manifest(data))
    return TrainingJob(
        section="train.fit", what="train", spec=spec, fit=fit, data=data, seed=3,
        scratch=where / "scratch", out=where / "out", **more,
    )  # fmt: skip


def run(the_job):
    training.run(the_job.model_dump(mode="json"))
    return the_job.out


def history(out):
    return json.loads((out / "history.json").read_text())


def curves(out):
    """The history without what a clock wrote."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history(out)]


def weights(out):
    return checkpoint.load(out)[1].state_dict()


def same(one, two):
    """Whether two trainings ended with the very same weights."""
    one, two = weights(one), weights(two)
    return all(two[name].equal(tensor) for name, tensor in one.items())
