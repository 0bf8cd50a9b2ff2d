"""The export stage on real digits: every candidate against PyTorch, and what stops it."""

import json
import shutil

import numpy as np
import onnx
import pytest

from pipeline import checkpoint, macs
from pipeline.candidates import load_candidates
from pipeline.config import ExportOnnx
from pipeline.data import open_split
from pipeline.errors import ModelError
from pipeline.runners import OnnxRunner, TorchRunner
from pipeline.stages import export_onnx as stage
from pipeline.stages.export_onnx import compare, export_onnx

NAMES = ("teacher", "student", "pruned", "int8", "int8_tensorrt")


def test_float_candidates_answer_as_pytorch_does(candidates, digits_checkpoints, digits_data):
    images = open_split(digits_data, "test").images()
    for name, directory in digits_checkpoints.items():
        expected = TorchRunner(directory)({"image": images})["logits"]
        found = OnnxRunner(candidates[0] / name / "model.onnx")({"image": images})["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_it_leaves_a_graph_and_a_spec_for_each_candidate(candidates):
    out, _ = candidates
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"candidates.json"} | {f"{name}/{file}" for name in NAMES for file in ("model.onnx", "model.json")}


def test_candidates_json_says_which_bytes_each_one_is(candidates, digits_checkpoints):
    out, _ = candidates
    found = load_candidates(out)
    assert tuple(candidate.name for candidate in found.candidates) == NAMES
    assert found.labels == tuple("0123456789")
    for candidate in found.candidates:
        file = out / candidate.file
        assert (candidate.sha256, candidate.size_bytes) == (checkpoint.sha256(file), file.stat().st_size)
        spec, network = checkpoint.load(digits_checkpoints[candidate.source])
        assert candidate.macs == macs.macs(network, spec.image_shape)
        assert checkpoint.load_spec(file.parent) == spec
    kinds = {
        candidate.name: (candidate.precision, candidate.target, candidate.source) for candidate in found.candidates
    }
    assert kinds["teacher"] == ("float32", "any", "teacher")
    assert kinds["int8"] == ("int8", "cpu", "pruned")
    assert kinds["int8_tensorrt"] == ("int8", "tensorrt", "pruned")


def test_parity_is_measured_and_returned(candidates):
    out, metrics = candidates
    for candidate in load_candidates(out).candidates:
        assert candidate.parity.images == 200
        assert metrics[f"{candidate.name}_parity_max_difference"] == candidate.parity.max_difference
        limit = 1e-4 if candidate.precision == "float32" else 5.0
        assert 0 <= candidate.parity.mean_difference <= candidate.parity.max_difference < limit
        assert candidate.parity.changed_predictions <= (0 if candidate.precision == "float32" else 8)


def test_metadata_leads_back_to_the_weights_and_the_data(candidates, digits_checkpoints):
    for candidate in load_candidates(candidates[0]).candidates:
        model = onnx.load(candidates[0] / candidate.file)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        weights = digits_checkpoints[candidate.source] / "model.safetensors"
        assert metadata["weights_sha256"] == checkpoint.sha256(weights)
        assert (metadata["dataset"], metadata["precision"]) == ("digits", candidate.precision)
        assert json.loads(metadata["labels"]) == list("0123456789")


def test_parity_counts_changed_predictions_as_by_hand():
    class Fixed:
        name = "fixed"

        def __init__(self, logits):
            self.logits = np.array(logits, np.float32)

        def __call__(self, inputs):
            return {"logits": self.logits[inputs["image"][:, 0, 0, 0]]}

        def close(self):
            pass

    ours = Fixed([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    theirs = Fixed([[1.0, 0.5], [2.0, 1.0], [3.0, 1.0]])
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    parity = compare(ours, theirs, images, batch=2)
    assert (parity.max_difference, parity.changed_predictions) == (2.0, 1)
    assert parity.mean_difference == pytest.approx(2.5 / 6)


@pytest.fixture
def exported_before(candidates, monkeypatch):
    """The exporter replaced by a copy of what it wrote before: these tests are of what comes after it."""
    monkeypatch.setattr(
        stage.onnx_graph, "export",
        lambda spec, network, file, opset, metadata: shutil.copy2(candidates[0] / file.parent.name / file.name, file),
    )  # fmt: skip


def test_a_float_graph_that_is_off_is_refused(exported_before, digits_data, digits_checkpoints, quantized, tmp_path):
    config = ExportOnnx(parity_images=50, max_difference=1e-12)
    message = (
        r"candidate 'teacher' differs from PyTorch by up to .* on 50 validation images; "
        r"export_onnx.max_difference allows 1e-12"
    )
    with pytest.raises(ModelError, match=message):
        export_onnx(config, data=digits_data, quantized=quantized[0], **digits_checkpoints, out=tmp_path)
    assert not (tmp_path / "candidates.json").exists()


def test_int8_of_other_weights_is_refused(exported_before, digits_data, digits_checkpoints, quantized, tmp_path):
    wrong = digits_checkpoints | {"pruned": digits_checkpoints["student"]}
    loose = ExportOnnx(parity_images=50, max_difference=1e3)
    with pytest.raises(ModelError, match=r"was quantized from other weights .* give export_onnx the 'prune' run"):
        export_onnx(loose, data=digits_data, quantized=quantized[0], **wrong, out=tmp_path)


def test_more_parity_images_than_there_are_is_refused(digits_data, digits_checkpoints, quantized, tmp_path):
    with pytest.raises(ModelError, match=r"export_onnx\.parity_images is 201, but .* has 200 validation images"):
        export_onnx(
            ExportOnnx(parity_images=201), data=digits_data, quantized=quantized[0], **digits_checkpoints, out=tmp_path
        )
