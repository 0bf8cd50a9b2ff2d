"""The stage around the protocol; tests/serving holds the protocol itself."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from serving_toys import FakeTriton, Registry, images, write_candidates

from pipeline.errors import ModelError, PromotionError
from pipeline.files import sha256
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.settings.serving import Promote, Serving
from pipeline.stages.promote import promote


def write_evaluation(directory, verdict="PROMOTE", winner="int8"):
    directory.mkdir()
    sentence = f"{winner} is inside the budget" if winner else "int8 misses accuracy_drop by 0.3 points"
    record = {"verdict": verdict, "winner": winner, "sentence": sentence, "rule": "smallest", "budget": {}}
    (directory / "verdict.json").write_text(json.dumps(record))
    save_file({"images": images(20)}, directory / "golden.safetensors")
    return directory


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(tmp_path / "repository"))
    out = tmp_path / "out"

    def stage(evaluation):
        out.mkdir(exist_ok=True)
        return promote(
            Promote(golden_images=16, observe_s=0.0, probes=4, max_p99_ratio=1e6),
            candidates=tmp_path / "candidates",
            evaluation=evaluation,
            serving=Serving(max_batch_size=8),
            registry=stage.registry,
            out=out,
            control=stage.control,
        )

    write_candidates(tmp_path / "candidates")
    stage.out, stage.registry = out, Registry(tmp_path / "registry.json")
    stage.control = FakeTriton(tmp_path / "repository", tmp_path / "loaded.json")
    return stage


def test_the_winner_goes_live_and_the_record_says_what(run, tmp_path):
    metrics = run(write_evaluation(tmp_path / "evaluation"))
    record = json.loads((run.out / "promotion.json").read_text())
    file = tmp_path / "candidates" / "int8" / "model.onnx"
    assert record["sha256"] == sha256(file)
    assert (record["model"], record["version"], record["candidate"]) == ("proxy", 1, "int8")
    assert (record["previous_version"], record["reused"]) == (None, False)
    assert (metrics["version"], metrics["reused"]) == (1.0, 0.0)
    assert run.registry.aliases("proxy") == {"champion": 1}
    assert run.registry.fetch("proxy", 1, tmp_path / "fetched")["verdict"] == "PROMOTE"
    assert {path.name for path in run.out.iterdir()} == {"promotion.json", "golden.safetensors", "ledger.jsonl"}


def test_golden_answers_are_those_of_the_file_at_most_one_batch(run, tmp_path):
    run(write_evaluation(tmp_path / "evaluation"))
    golden = load_file(run.out / "golden.safetensors")
    assert golden["input:image"].shape == (8, 1, 2, 2)
    expected = OnnxRunner(tmp_path / "candidates" / "int8" / "model.onnx")({"image": images(20)[:8]})
    np.testing.assert_array_equal(golden["output:logits"], expected["logits"])


def test_a_second_run_reuses_what_serves(run, tmp_path):
    evaluation = write_evaluation(tmp_path / "evaluation")
    run(evaluation)
    assert run(evaluation)["reused"] == 1.0
    assert run.registry.versions == 1


def test_an_infeasible_verdict_promotes_nothing(run, tmp_path):
    with pytest.raises(PromotionError, match=r"the verdict is INFEASIBLE: int8 misses accuracy_drop by 0.3 points"):
        run(write_evaluation(tmp_path / "evaluation", "INFEASIBLE", None))
    assert run.registry.versions == 0


def test_a_winner_that_is_no_candidate_is_named(run, tmp_path):
    with pytest.raises(ModelError, match="there is no candidate 'int4'; there are: teacher, int8; did you mean 'int8'"):
        run(write_evaluation(tmp_path / "evaluation", winner="int4"))


def test_bytes_that_changed_since_the_export_are_refused(run, tmp_path):
    file = tmp_path / "candidates" / "int8" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(PromotionError, match=r"candidates.json says .*the file changed after it was exported"):
        run(write_evaluation(tmp_path / "evaluation"))
    assert run.registry.versions == 0


def test_missing_golden_images_are_named(run, tmp_path):
    evaluation = write_evaluation(tmp_path / "evaluation")
    (evaluation / "golden.safetensors").unlink()
    with pytest.raises(
        PromotionError, match=r"golden.safetensors is missing: give the directory that `evaluate` wrote"
    ):
        run(evaluation)
