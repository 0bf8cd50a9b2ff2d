"""The stage on linear models over made-up images, with a stand-in for the live server; then on the real one."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from torch import nn

from pipeline.data import shards
from pipeline.data.split import open_split
from pipeline.errors import BudgetError, ModelError
from pipeline.files import sha256
from pipeline.models.checkpoint import save
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.records.candidates import Candidate, Candidates, save_candidates
from pipeline.records.engines import Engines, save_engines
from pipeline.records.evaluation import load_evaluation
from pipeline.records.measures import Parity, Served
from pipeline.records.verdict import load_verdict
from pipeline.report import plots
from pipeline.serving.load.candidates import Load, Loads
from pipeline.settings.gate import Budget, Evaluate
from pipeline.settings.serving import Serving
from pipeline.stages.evaluate import evaluate

LABELS = ("zero", "one", "two", "three")
SHAPE = (1, 4, 4)
NOISE = {"teacher": 0.0, "student": 0.02, "pruned": 0.03, "int8": 0.04}
CONFIG = Evaluate(offline_batches=(1, 8), offline_seconds=0.01, concurrency=(1, 4), load_seconds=0.1, bootstrap=200)
BUDGET = Budget(accuracy_drop=0.2, size_ratio=2, speedup=0.01, served_speedup=2)


class Linear(nn.Module):
    """One matrix: what a checkpoint of these tests is rebuilt as."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * 16, classes)

    def forward(self, x):
        return self.head(x.flatten(1))


def write_onnx(path, weights):
    """The graph of `Linear` with the preprocessing before it."""
    path.parent.mkdir(parents=True)
    constants = {"scale": np.array(255, np.float32), "weights": weights.astype(np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels", "scale"], ["scaled"]),
            helper.make_node("Flatten", ["scaled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(LABELS)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def describe(name, file, root):
    return Candidate(
        name=name, file=str(file.relative_to(root)), sha256=sha256(file), parameters=64, macs=64,
        size_bytes={"teacher": 1000, "int8": 100}.get(name, 400), precision="int8" if "int8" in name else "float32",
        target={"int8": "cpu", "int8_tensorrt": "tensorrt"}.get(name, "any"),
        source=name if name in {"teacher", "student", "pruned"} else "pruned",
        made_by={"teacher": "train", "student": "distill", "pruned": "prune"}.get(name, "quantize"),
        parity=Parity(images=10, max_difference=0, mean_difference=0, changed_predictions=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Prepared data, checkpoints, candidates and engines, as the stages before leave them."""
    root, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(2)
    prototypes = rng.integers(0, 200, (len(LABELS), *SHAPE))
    splits = {}
    for split, count in (("train", 80), ("validation", 120), ("test", 200)):
        labels = np.arange(count) % len(LABELS)
        noisy = prototypes[labels] + rng.normal(0, 70, (count, *SHAPE))
        splits[split] = (noisy.clip(0, 255).astype(np.uint8), labels)
    shards.write(root / "data", name="made-up", labels=LABELS, splits=splits)
    centred = (prototypes / 255 - prototypes.mean() / 255).reshape(len(LABELS), -1).T
    spec = image_classifier(f"{__name__}:Linear", {}, SHAPE, LABELS, Preprocessing(mean=(0.0,), std=(1.0,)))
    candidates = []
    for name, noise in NOISE.items():
        weights = centred + rng.normal(0, 5 * noise, centred.shape)
        file = root / "candidates" / name / "model.onnx"
        write_onnx(file, weights)
        candidates.append(describe(name, file, root / "candidates"))
        network = Linear(1, len(LABELS))
        network.head.weight.data = torch.tensor(weights.T, dtype=torch.float32)
        network.head.bias.data.zero_()
        save(root / name, spec, network)
        save(file.parent, spec, network)
    refused = root / "candidates" / "int8_tensorrt" / "model.onnx"
    refused.parent.mkdir()
    refused.write_bytes(b"a graph that ONNX Runtime does not take")
    candidates.append(describe("int8_tensorrt", refused, root / "candidates"))
    save_candidates(root / "candidates", Candidates(candidates=tuple(candidates), labels=LABELS))
    (root / "engines").mkdir()
    save_engines(root / "engines", Engines(skipped="no GPU here"))
    return root


def stand_in(config, serving, subjects, candidates):
    """In place of Triton: every candidate answers as its file does, at a speed that is made up."""
    found = {}
    for place, one in enumerate(candidates):
        served = {
            level: Served(throughput=100.0 * (1 + 2 * place), p50_ms=1, p99_ms=2, requests=9, failures=0)
            for level in config.concurrency
        }
        answers = subjects.runner(one)({"image": subjects.sample_images[:16]})["logits"]
        found[one.name] = Load(served=served, answers=answers)
    return Loads(server="0.0", candidates=found)


def run(inputs, out, **changes):
    out.mkdir(exist_ok=True)
    folders = {name: inputs / name for name in ("data", "teacher", "student", "pruned", "candidates", "engines")}
    settings = {"budget": BUDGET, "serving": Serving(), "seed": 5, "out": out, "serve": stand_in}
    return evaluate(CONFIG, **folders | settings | changes)


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run(inputs, out)


def test_writes_exactly_these_files(done):
    out, _ = done
    plots = ("accuracy_latency", "accuracy_throughput", "confusion_matrix", "recall_change", "reliability", "sizes")
    files = [
        "evaluation.json",
        "golden.safetensors",
        *(f"plots/{name}.png" for name in plots),
        "predictions.npz",
        "verdict.json",
    ]
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == files


def test_accuracies_are_those_of_the_files_on_the_whole_splits(done, inputs):
    evaluation = load_evaluation(done[0])
    for name in NOISE:
        one = evaluation.candidate(name)
        weights = numpy_helper.to_array(
            next(t for t in onnx.load(inputs / "candidates" / one.file).graph.initializer if t.name == "weights")
        )
        for split in ("validation", "test"):
            opened = open_split(inputs / "data", split)
            said = (opened.images().reshape(len(opened), -1) / 255 @ weights).argmax(axis=1)
            assert getattr(one, split).accuracy.value == pytest.approx((said == opened.labels).mean())


def test_every_runner_is_timed_at_every_batch(done):
    evaluation = load_evaluation(done[0])
    assert all(set(evaluation.candidate(name).offline) == {1, 8} for name in NOISE)
    assert all(set(evaluation.candidate(name).offline_torch) == {1, 8} for name in ("teacher", "student", "pruned"))
    assert evaluation.candidate("int8").offline_torch == {}


def test_pytorch_answers_as_the_file_does(done):
    evaluation = load_evaluation(done[0])
    assert [evaluation.candidate(name).torch_agreement for name in NOISE] == [1, 1, 1, None]


def test_a_graph_for_tensorrt_that_runs_nowhere_here_is_noted(done):
    one = load_evaluation(done[0]).candidate("int8_tensorrt")
    assert one.note.startswith("not evaluated: ONNX Runtime cannot load")
    assert (one.test, one.offline, one.served) == (None, {}, {})
    assert load_evaluation(done[0]).engines == {"skipped": "no GPU here"}


def test_a_broken_file_of_any_other_candidate_is_an_error(inputs, tmp_path):
    for source in (inputs / "candidates").rglob("*"):
        if source.is_file():
            copy = tmp_path / "candidates" / source.relative_to(inputs / "candidates")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    (tmp_path / "candidates" / "int8" / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*int8/model\.onnx"):
        run(inputs, tmp_path / "out", candidates=tmp_path / "candidates")


def test_verdict_promotes_the_small_quick_one(done):
    verdict = load_verdict(done[0])
    assert (verdict.verdict, verdict.winner) == ("PROMOTE", "int8")
    assert verdict.budget == BUDGET.model_dump()


def test_metrics_are_flat_numbers_that_runs_are_compared_by(done):
    evaluation, metrics = load_evaluation(done[0]), done[1]
    assert metrics["int8_test_accuracy"] == evaluation.candidate("int8").test.accuracy.value
    assert metrics["int8_served_throughput_c4"] == 700
    assert metrics["int8_served_speedup"] == 7
    assert metrics["int8_size_ratio"] == 10
    assert all(isinstance(value, float) for value in metrics.values())


def test_predictions_hold_labels_and_logits_of_both_splits_without_pickle(done):
    with np.load(done[0] / "predictions.npz", allow_pickle=False) as found:
        assert found["test_labels"].shape == (200,)
        assert {name: found[f"{name}_validation"].shape for name in NOISE} == dict.fromkeys(NOISE, (120, 4))


def test_golden_images_are_64_validation_images(done, inputs):
    golden = load_file(done[0] / "golden.safetensors")["images"]
    validation = {image.tobytes() for image in open_split(inputs / "data", "validation").images()}
    assert golden.shape == (64, *SHAPE) and golden.dtype == np.uint8
    assert {image.tobytes() for image in golden} <= validation


def test_infeasible_is_an_error_after_everything_is_written(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_PROGRESS", str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr(plots, "all_plots", lambda evaluation, verdict: {"sizes": plots.sizes(evaluation)})
    with pytest.raises(BudgetError, match=r"INFEASIBLE: nearest is int8: 10\.00x smaller than the teacher where 50x"):
        run(inputs, tmp_path / "out", budget=BUDGET.model_copy(update={"size_ratio": 50.0}))
    assert load_verdict(tmp_path / "out").nearest == "int8"
    assert {"evaluation.json", "golden.safetensors", "plots"} < {path.name for path in (tmp_path / "out").iterdir()}
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert {event["what"] for event in events} == {"answers", "offline timing", "verdict"}
    assert events[-1]["metrics"]["int8_size_ratio"] == 10  # the run fails and still has its numbers


def test_answers_through_the_server_that_differ_are_found(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "all_plots", lambda evaluation, verdict: {})

    def wrong(config, serving, subjects, candidates):
        loads = stand_in(config, serving, subjects, candidates)
        loads.candidates["int8"].answers[:3] += 0.5
        return loads

    with pytest.raises(BudgetError):
        run(inputs, tmp_path, serve=wrong, budget=BUDGET.model_copy(update={"size_ratio": 10.0}))
    int8 = load_evaluation(tmp_path).candidate("int8")
    assert (int8.served_parity.images, int8.served_parity.differing) == (16, 3)
    standing = {one.name: one for one in load_verdict(tmp_path).candidates}["int8"]
    assert standing.reason == "Triton answers 3 of 16 images differently than the same file does here"


@pytest.mark.extra  # tests/integration/test_measured.py sees the same after a whole run
@pytest.mark.integration
def test_the_live_server_answers_as_the_files_do_and_is_left_as_it_was(inputs, tmp_path, triton):
    settings = CONFIG.model_copy(update={"load_seconds": 0.2})
    folders = {name: inputs / name for name in ("data", "teacher", "student", "pruned", "candidates", "engines")}
    out = tmp_path / "out"
    out.mkdir()
    budget = Budget(accuracy_drop=0.2, size_ratio=2, speedup=0.01, served_speedup=0.01)
    evaluate(settings, **folders, budget=budget, serving=Serving(instances=1), seed=5, out=out)
    evaluation = load_evaluation(out)
    assert evaluation.host.triton == triton.server_version()
    for name in NOISE:
        one = evaluation.candidate(name)
        assert set(one.served) == {1, 4}
        for load in one.served.values():
            assert (load.failures, load.requests > 0) == (0, True), load
            assert load.p50_ms <= load.p99_ms
        assert (one.served_parity.images, one.served_parity.differing) == (64, 0)
    assert evaluation.candidate("int8_tensorrt").served == {}
    assert not any(triton.ready(f"proxy__eval_{name}") for name in NOISE)
    assert list((tmp_path / "repository").iterdir()) == []
