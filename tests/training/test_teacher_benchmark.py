"""benchmarks/teacher.py and teaching.py: what is kept, and what is compared with what."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pipeline.data import shards
from pipeline.data.split import open_split
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import side_by_side
import teacher
import teaching

LABELS = ("a", "b")


@pytest.fixture
def data(tmp_path):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (12, 1, 8, 8), generator=generator, dtype=torch.uint8).numpy()
    labels = (torch.arange(12) % 2).numpy()
    splits = dict.fromkeys(("train", "validation", "test"), (images, labels))
    shards.write(tmp_path / "data", name="toy", labels=LABELS, splits=splits)
    return tmp_path / "data"


def fake(out, spec, accuracy, seed=0):
    """A network as a training leaves it, untrained."""
    torch.manual_seed(seed)
    checkpoint.save(out, spec, checkpoint.build(spec))
    history = [{"epoch": 1, "validation_accuracy": accuracy}]
    (out / "history.json").write_text(json.dumps(history), encoding="utf-8")


def test_half_precision_keeps_what_the_network_answers(tmp_path):
    spec = image_classifier(
        "resnet", {"width": 4, "blocks": [1]}, (1, 8, 8), LABELS, Preprocessing(mean=(0.3,), std=(0.4,))
    )
    fake(tmp_path / "whole", spec, 0.5)
    teacher.halve(tmp_path / "whole", tmp_path / "half")
    image = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    whole, half = (checkpoint.load(tmp_path / name)[1](image) for name in ("whole", "half"))
    assert torch.allclose(whole, half, atol=0.01)
    assert not torch.equal(whole, half)


def test_the_best_on_validation_is_chosen_and_of_equals_the_one_with_less_loss(tmp_path):
    numbers = {"first": (0.95, 0.2), "second": (0.96, 0.3), "third": (0.96, 0.1)}
    found = {name: {"validation_accuracy": a, "validation_loss": b} for name, (a, b) in numbers.items()}
    (tmp_path / "candidates.json").write_text(json.dumps({"candidates": found}), encoding="utf-8")
    assert teacher.chosen(tmp_path) == "third"


@pytest.mark.parametrize("name", teacher.CANDIDATES)
def test_every_candidate_can_be_built_and_fits_into_two_megabytes(name, data, tmp_path):
    job = teacher.plan(name, 1).job(data, tmp_path)
    parameters = sum(tensor.numel() for tensor in checkpoint.build(job.spec).state_dict().values())
    assert 2 * parameters < 1_950_000
    assert job.fit.label_smoothing == 0


def test_both_students_of_a_pair_differ_in_the_loss_alone(data, tmp_path):
    alone = teaching.Cell("as they are", 4).plan(17).job(data, tmp_path, Path("teacher"))
    distilled = teaching.Cell("as they are", 4, 2.0, 0.9).plan(17).job(data, tmp_path, Path("teacher"))
    assert (alone.teacher, distilled.teacher) == (None, Path("teacher"))
    assert alone == distilled.model_copy(update={"loss": None, "teacher": None})


def test_a_pair_has_the_best_loss_on_validation_and_gains_over_the_same_seeds(data, tmp_path):
    cells = [teaching.Cell("as they are", 4), *(teaching.Cell("as they are", 4, one, 0.9) for one in (2.0, 4.0))]
    jobs = {
        cell.name(seed): cell.plan(seed).job(data, tmp_path / cell.name(seed), tmp_path)
        for cell in cells
        for seed in (1, 2)
    }
    for number, (name, job) in enumerate(jobs.items()):
        fake(job.out, job.spec, 0.7 if "kd_2" in name else 0.6, seed=number)
    assert all(side_by_side.finished(job) for job in jobs.values())
    rows = [teaching.row(cell, [jobs[cell.name(seed)] for seed in (1, 2)]) for cell in cells]
    test = open_split(data, "test")
    (views, epochs), *others = teaching.groups(rows)
    pair = teaching.pair(rows, views, epochs, jobs, [1, 2], test)
    assert not others
    assert (pair["temperature"], pair["alpha"], pair["validation_distilled"]) == (2.0, 0.9, 0.7)
    mean = sum(pair["test_distilled"]) / 2 - sum(pair["test_alone"]) / 2
    assert pair["gain"]["value"] == pytest.approx(mean)
    assert pair["gain"]["low"] <= mean <= pair["gain"]["high"]
