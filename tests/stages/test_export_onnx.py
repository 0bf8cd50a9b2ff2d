"""The export stage on real digits: every candidate against PyTorch, and what stops it."""

import json
import shutil

import numpy as np
import onnx
import pytest

from pipeline.data.split import open_split
from pipeline.errors import ModelError, SettingsError
from pipeline.export import executorch, onnx_graph
from pipeline.files import sha256
from pipeline.models import checkpoint, size
from pipeline.models.spec import load_spec
from pipeline.records.candidates import load_candidates
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.runner import TorchRunner
from pipeline.settings.export import ExportOnnx
from pipeline.stages.export_onnx import export_onnx

NAMES = ("teacher", "student", "pruned", "int8", "int8_tensorrt")


def test_each_checkpoint_is_read_once(
    exported_before, digits_data, digits_checkpoints, quantized, tmp_path, monkeypatch
):
    read, original = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda directory: read.append(directory) or original(directory))
    config = ExportOnnx(parity_images=10)
    export_onnx(config, data=digits_data, quantized=quantized[0], **digits_checkpoints, out=tmp_path)
    assert read == list(digits_checkpoints.values())


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


def test_candidates_json_says_which_bytes_each_one_is(candidates, digits_checkpoints, quantized):
    out, _ = candidates
    found = load_candidates(out)
    assert tuple(candidate.name for candidate in found.candidates) == NAMES
    assert found.labels == tuple("0123456789")
    for candidate in found.candidates:
        file = out / candidate.file
        assert (candidate.sha256, candidate.size_bytes) == (sha256(file), file.stat().st_size)
        spec, network = checkpoint.load(digits_checkpoints[candidate.source])
        assert candidate.macs == size.macs(network, spec.image_shape)
        assert load_spec(file.parent) == spec
    assert [one.name for one in found.ancestry("int8")] == ["teacher", "student", "pruned", "int8"]
    assert [one.made_by for one in found.ancestry("int8")] == ["train", "distill", "prune", "quantize"]
    kinds = {
        candidate.name: (candidate.precision, candidate.target, candidate.source) for candidate in found.candidates
    }
    serve = json.loads((quantized[0] / "quantization.json").read_text())["serve"]
    assert found.named("int8").gives_way_to == (None if serve == "int8" else "pruned")
    assert {one.gives_way_to for one in found.candidates if one.name != "int8"} == {None}
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
        may_change = 0 if candidate.precision == "float32" else 8
        assert candidate.parity.changed_predictions <= may_change


def test_metadata_leads_back_to_the_weights_and_the_data(candidates, digits_checkpoints, digits_data):
    for candidate in load_candidates(candidates[0]).candidates:
        model = onnx.load(candidates[0] / candidate.file)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        weights = digits_checkpoints[candidate.source] / "model.safetensors"
        assert metadata["weights_sha256"] == sha256(weights)
        assert (metadata["dataset"], metadata["precision"]) == ("digits", candidate.precision)
        assert metadata["data_sha256"] == sha256(digits_data / "manifest.json")
        assert json.loads(metadata["labels"]) == list("0123456789")


@pytest.fixture
def exported_before(candidates, monkeypatch):
    """The exporter replaced by a copy of what it wrote before: these tests are of what comes after it."""
    monkeypatch.setattr(
        onnx_graph, "export",
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


def test_what_quantize_did_not_end_is_refused(digits_data, digits_checkpoints, quantized, tmp_path):
    half, out = tmp_path / "half", tmp_path / "out"
    shutil.copytree(quantized[0], half, ignore=shutil.ignore_patterns("quantization.json"))
    out.mkdir()
    with pytest.raises(ModelError, match=r"half/quantization\.json cannot be read .* run `flyweight quantize`"):
        export_onnx(ExportOnnx(parity_images=10), data=digits_data, quantized=half, **digits_checkpoints, out=out)
    assert list(out.iterdir()) == []


def test_more_parity_images_than_there_are_is_refused(digits_data, digits_checkpoints, quantized, tmp_path):
    with pytest.raises(ModelError, match=r"export_onnx\.parity_images is 201, but .* has 200 validation images"):
        export_onnx(
            ExportOnnx(parity_images=201), data=digits_data, quantized=quantized[0], **digits_checkpoints, out=tmp_path
        )


def test_programs_for_phones_stand_beside_the_graphs(
    exported_before, digits_data, digits_checkpoints, quantized, tmp_path
):
    pytest.importorskip("executorch", reason="needs `pip install flyweight[mobile]`")
    config = ExportOnnx(parity_images=200, mobile="executorch")
    metrics = export_onnx(config, data=digits_data, quantized=quantized[0], **digits_checkpoints, out=tmp_path)
    phones = load_candidates(tmp_path).mobile
    assert [one.file for one in phones] == ["student/model.pte", "pruned/model.pte"]
    for one in phones:
        file = tmp_path / one.file
        assert (one.sha256, one.size_bytes) == (sha256(file), file.stat().st_size)
        assert one.parity.images == 200 and one.parity.max_difference < 1e-4
        assert one.parity.changed_predictions == 0
        assert metrics[f"{one.candidate}_mobile_size_bytes"] == one.size_bytes
        weights = sha256(digits_checkpoints[one.candidate] / "model.safetensors")
        assert executorch.MobileRunner(file).metadata()["weights_sha256"] == weights


def test_without_the_package_for_phones_nothing_is_begun(monkeypatch, tmp_path):
    monkeypatch.setattr(executorch.importlib.util, "find_spec", lambda name: None)
    nowhere = dict.fromkeys(("data", "teacher", "student", "pruned", "quantized"), tmp_path / "absent")
    with pytest.raises(SettingsError, match=r"export_onnx\.mobile is 'executorch', but .* flyweight\[mobile\]"):
        export_onnx(ExportOnnx(mobile="executorch"), **nowhere, out=tmp_path)
    assert list(tmp_path.iterdir()) == []
