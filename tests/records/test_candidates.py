"""candidates.json: written, read back, and refused."""

import pytest

from pipeline.errors import ModelError
from pipeline.records.candidates import Candidate, Candidates, load_candidates, save_candidates
from pipeline.records.measures import Parity


@pytest.fixture
def two():
    parity = Parity(images=10, max_difference=0.1, mean_difference=0.01, changed_predictions=1)
    facts = {"sha256": "ab", "size_bytes": 3, "parameters": 2, "macs": 5, "parity": parity}
    teacher = Candidate(
        name="teacher", file="teacher/model.onnx", precision="float32", target="any", source="teacher", **facts
    )
    int8 = Candidate(name="int8", file="int8/model.onnx", precision="int8", target="cpu", source="pruned", **facts)
    return Candidates(candidates=(teacher, int8), labels=("cat", "dog"))


def test_what_is_saved_is_loaded(two, tmp_path):
    save_candidates(tmp_path, two)
    assert load_candidates(tmp_path) == two


def test_a_candidate_is_found_by_name(two):
    assert two.named("int8").target == "cpu"


def test_a_line_of_candidates_of_any_name_leads_back_to_the_first(two):
    facts = two.candidates[0].model_dump() | {"target": "npu"}
    made = {"ours": (None, "train"), "narrow": ("ours", "distill"), "narrower": ("narrow", "mine")}
    listed = tuple(
        Candidate(**facts | {"name": name, "source": name, "parent": parent, "made_by": made_by})
        for name, (parent, made_by) in made.items()
    )
    found = Candidates(candidates=listed, labels=("cat", "dog"))
    assert [(one.name, one.made_by) for one in found.ancestry("narrower")] == [
        ("ours", "train"), ("narrow", "distill"), ("narrower", "mine"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="candidate 'narrow' was made from 'ours', not listed before it"):
        Candidates(candidates=listed[1:], labels=("cat", "dog"))


def test_an_unknown_candidate_is_refused_with_the_near_miss(two):
    with pytest.raises(
        ModelError, match="there is no candidate 'teachr'; there are: teacher, int8; did you mean 'teacher'"
    ):
        two.named("teachr")


def test_a_directory_without_it_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"candidates\.json cannot be read .* run `flyweight export_onnx`"):
        load_candidates(tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "candidates.json").write_text('{"candidates": [{"name": "x"}], "labels": []}')
    with pytest.raises(ModelError, match=r"candidates\.json is not what `export_onnx` writes"):
        load_candidates(tmp_path)
