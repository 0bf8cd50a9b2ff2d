"""What two processes do together, which start once for all of it: it takes them some seconds."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from training_jobs import FIT, PLAIN, curves, job, run, same, weights

from pipeline.data.manifest import load_manifest
from pipeline.machine.cpu import cores
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.settings.training import Distributed
from pipeline.training.distributed.launch import launch
from pipeline.training.fit import new_spec

pytestmark = pytest.mark.integration
TOYS = Path(__file__).parents[2] / "toys"
LOSS = Component(name="training_toys:FixedStart")
SHORT = FIT.model_copy(update={"amp": "off", "horizontal_flip": True, "random_erasing": 0.5, "epochs": 2})
IMAGES, LABELS = torch.randn(8, 3, generator=torch.Generator().manual_seed(4)), [0, 1, 1, 0, 1, 0, 0, 1]


@pytest.fixture(scope="module")
def teacher(tiny_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    torch.manual_seed(2)
    checkpoint.save(directory, spec, checkpoint.build(spec))
    return directory


def in_two_processes(out, **jobs):
    """Run each function of toys/workers.py that `jobs` names with its job; return what both processes say, by function."""
    given = {name: {**one, "out": str(out / name)} for name, one in jobs.items()}
    for name in jobs:
        (out / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TOYS))
        launch("workers:each", given, Distributed(nproc=2), out / "a place with blanks")
    return {name: [json.loads((out / name / f"{rank}.json").read_text()) for rank in (0, 1)] for name in jobs}


def trainings(*of_each):
    """The job of `workers:train`: (job, epochs, or None for all) of each training."""
    return {"trainings": [{"job": one.model_dump(mode="json"), "epochs": epochs} for one, epochs in of_each]}


@pytest.fixture(scope="module")
def both(tiny_data, teacher, tmp_path_factory):
    """What two processes have done: a shared step, and trainings whose losses learn, one of them resumed."""
    root = tmp_path_factory.mktemp("both")

    def the_job(where, loss):
        return job(tiny_data, root / where, SHORT, PLAIN, teacher=teacher, loss=loss)

    drawn = the_job("drawn", Component(name="training_toys:LearnedTemperature"))
    whole, broken = the_job("whole", LOSS), the_job("broken", LOSS)
    found = in_two_processes(
        root / "processes",
        together={"images": IMAGES.tolist(), "labels": LABELS},
        train=trainings((drawn, None), (whole, None), (broken, 1), (broken, None)),
    )
    return SimpleNamespace(**found, whole=whole, broken=broken)


def test_two_processes_learn_as_one_would_from_the_whole_batch(both):
    one, two = both.together
    assert [(x["rank"], x["world"], x["main"]) for x in (one, two)] == [(0, 2, True), (1, 2, False)]
    assert one["mean"] == two["mean"] == 0.5 and one["total"] == two["total"] == [2.0, 1.0]
    assert one["threads"] == max(1, cores() // 2)
    assert one["listening"] == two["listening"] == []
    assert one["weights"] == two["weights"] and one["gradients"] == two["gradients"]
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    for weight, value in zip(network.parameters(), one["weights"], strict=True):
        weight.data = torch.tensor(value)
    F.cross_entropy(network(IMAGES), torch.tensor(LABELS)).backward()
    for weight, gradient in zip(network.parameters(), one["gradients"], strict=True):
        torch.testing.assert_close(weight.grad, torch.tensor(gradient))


def test_a_loss_stays_one_and_is_resumed(both):
    one, two = both.train
    assert one == two, "both begin alike, whatever each has drawn, and stay alike"
    assert all(each["begun"] != each["ended"] for each in one) and one[0]["ended"]["loss.calls"] == 20
    assert one[3]["begun"] == one[2]["ended"] and one[3]["ended"] == one[1]["ended"]
    assert curves(both.broken.out) == curves(both.whole.out) and same(both.broken.out, both.whole.out)


@pytest.mark.extra
def test_one_and_two_processes_learn_the_same_from_the_same_views(tiny_data, teacher, tmp_path):
    """Batch norm and buffers aside, a curve does not depend on the number of processes."""
    fit = SHORT.model_copy(update={"lr": 0.02})
    alone, together = (
        job(tiny_data, tmp_path / name, fit, PLAIN, teacher=teacher, loss=Component(name="kd"))
        for name in ("alone", "together")
    )
    run(alone)
    in_two_processes(tmp_path / "processes", train=trainings((together, None)))
    for one, two in zip(curves(alone.out), curves(together.out), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    one, two = (weights(the_job.out) for the_job in (alone, together))
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-3, atol=1e-5)
