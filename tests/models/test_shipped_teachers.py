"""Every teacher in teachers/ is what its evidence says, small enough for git, and can be taken as any checkpoint is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.files import sha256
from pipeline.models import checkpoint, size

TEACHERS = sorted(path for path in (Path(__file__).resolve().parents[2] / "teachers").iterdir() if path.is_dir())
each_teacher = pytest.mark.parametrize("teacher", TEACHERS, ids=lambda path: path.name)


def evidence(teacher):
    return json.loads((teacher / "evidence.json").read_text(encoding="utf-8"))


@each_teacher
def test_its_weights_are_those_that_were_evaluated(teacher):
    assert sha256(teacher / checkpoint.WEIGHTS_FILE) == evidence(teacher)["weights_sha256"]


@each_teacher
def test_it_is_in_half_precision_and_small(teacher):
    weights = load_file(teacher / checkpoint.WEIGHTS_FILE).values()
    assert {one.dtype for one in weights if one.is_floating_point()} == {torch.float16}
    assert (teacher / checkpoint.WEIGHTS_FILE).stat().st_size <= 2_000_000


@each_teacher
def test_it_loads_as_a_float32_network_that_answers(teacher):
    spec, network = checkpoint.load(teacher)
    assert {one.dtype for one in network.parameters()} == {torch.float32}
    assert size.parameters(network) == evidence(teacher)["parameters"]
    with torch.inference_mode():
        logits = checkpoint.WithPreprocessing(spec, network)(torch.zeros(2, *spec.image_shape, dtype=torch.uint8))
    assert logits.shape == (2, len(spec.labels))
    assert torch.isfinite(logits).all()


@each_teacher
def test_its_page_says_what_its_evidence_says(teacher):
    page = (teacher / "README.md").read_text(encoding="utf-8")
    assert f"**{100 * evidence(teacher)['kept']['test_accuracy']:.2f} %**" in page
    for command in evidence(teacher)["command"]:
        assert command in page
