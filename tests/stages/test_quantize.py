"""The quantize stage on real digits: what it leaves, what it says, what it refuses."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline import checkpoint
from pipeline.config import Component, Distributed, ExportOnnx, Finetune, Quantize
from pipeline.data import open_split
from pipeline.errors import ModelError, SettingsError
from pipeline.runners import OnnxRunner
from pipeline.stages import quantize as stage
from pipeline.stages.export_onnx import export_onnx
from pipeline.stages.quantize import accuracy, calibration_images, prove, quantize

FIT = Finetune(epochs=1, batch_size=100, lr=0.01, crop_padding=0, horizontal_flip=False)


@pytest.fixture
def run(digits_data, digits_checkpoints, tmp_path):
    """Returns a function from settings to what the stage returned; it writes to ``tmp_path / "out"``."""

    def call(**settings):
        (tmp_path / "out").mkdir()
        return quantize(
            Quantize(**{"calibration_images": 200, **settings}),
            data=digits_data, teacher=digits_checkpoints["teacher"], pruned=digits_checkpoints["pruned"],
            distributed=Distributed(), seed=3, out=tmp_path / "out", scratch=tmp_path / "scratch",
        )  # fmt: skip

    return call


def test_it_leaves_one_graph_a_target_and_the_record(quantized):
    out, _ = quantized
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == ["cpu/model.onnx", "model.json", "quantization.json", "tensorrt/model.onnx"]


def test_the_record_proves_that_it_is_integer_and_how_fast_and_where(quantized):
    out, metrics = quantized
    record = json.loads((out / "quantization.json").read_text())
    assert record["targets"]["cpu"]["float_ops_left"] == 0
    assert record["targets"]["cpu"]["fused_integer_ops"] == metrics["cpu_fused_integer_ops"] == 10
    assert set(record["timing"]["batch_64"]) == {"float", "int8", "speedup"}
    assert metrics["int8_speedup_batch_64"] == record["timing"]["batch_64"]["speedup"] > 0
    assert metrics["int8_agreement"] > 0.97
    assert isinstance(record["cpu"]["vnni"], bool)
    assert record["quantizer"] == {"name": "static", "calibration": "minmax"}


def test_the_calibration_set_is_fingerprinted(quantized, digits_data):
    record = json.loads((quantized[0] / "quantization.json").read_text())["calibration"]
    images, again = calibration_images(digits_data, 200, (1, 8, 8), seed=3)
    assert record == again
    assert record["sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    _, other = calibration_images(digits_data, 200, (1, 8, 8), seed=4)
    assert other["sha256"] != record["sha256"]


def test_every_class_is_calibrated_on_in_its_share(digits_data):
    _, record = calibration_images(digits_data, 130, (1, 8, 8), seed=1)
    shares = np.bincount(open_split(digits_data, "train").labels) / 10
    assert sum(record["per_class"]) == 130
    assert np.abs(np.array(record["per_class"]) - shares).max() <= 1


def test_int8_that_is_slower_is_said_so(quantized, digits_data, monkeypatch, caplog):
    class Offline:
        images_per_second = 100.0

    monkeypatch.setattr(stage, "time_runners", lambda runners, *_: dict.fromkeys(runners, Offline))
    file = quantized[0] / "cpu" / "model.onnx"
    found = prove(file, file, open_split(digits_data, "train").slice(0, 8))
    assert found["int8_is_faster"] is False
    assert "int8 is not faster than float on this machine (batch_1, batch_64)" in caplog.text


def test_more_calibration_images_than_there_are_is_refused(run, tmp_path):
    with pytest.raises(ModelError, match=r"quantize\.calibration_images is 1301, but .* has 1300 training images"):
        run(calibration_images=1301)
    assert list((tmp_path / "out").iterdir()) == []


def test_images_of_another_size_are_refused(digits_data):
    with pytest.raises(ModelError, match=r"has images of \(1, 8, 8\), the model takes \(3, 32, 32\)"):
        calibration_images(digits_data, 10, (3, 32, 32), seed=1)


def test_a_misspelt_quantizer_setting_is_refused_with_the_near_miss(run):
    with pytest.raises(
        SettingsError, match=r"quantizers\.static has no setting 'calibraton'.*did you mean 'calibration'"
    ):
        run(quantizer={"name": "static", "calibraton": "minmax"}, calibration_images=10)


def test_with_training_the_better_of_the_two_is_kept(run, digits_data, digits_checkpoints, here, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(stage, "accuracy", lambda file, split: told.setdefault(file.parts[-3], accuracy(file, split)))
    metrics = run(fit=FIT.model_copy(update={"epochs": 2}))
    out = tmp_path / "out"
    record = json.loads((out / "quantization.json").read_text())
    assert record["training"]["validation_accuracy"] == told and set(told) == {"ptq", "qat"}
    best = max(told.values())
    kept = "qat" if told["qat"] > told["ptq"] else "ptq"
    assert record["training"]["kept"] == kept and metrics["qat_kept"] == (kept == "qat")
    assert accuracy(out / "cpu" / "model.onnx", open_split(digits_data, "validation")) == best
    assert metrics["ptq_validation_accuracy"] == told["ptq"] and metrics["qat_validation_accuracy"] == told["qat"]
    assert metrics["qat_gain"] == pytest.approx(told["qat"] - told["ptq"])
    simulated = record["training"]["training"]["validation_accuracy"]
    assert told["qat"] == pytest.approx(simulated, abs=0.011), "two of 200 images may fall to the other side of a tie"
    spec, _ = checkpoint.load(out / "qat")
    assert spec.folded and spec.pruning == checkpoint.load_spec(digits_checkpoints["pruned"]).pruning


def graphs_after(run, tmp_path, monkeypatch, better):
    """The cpu graph that is left where `better` measures better than the other."""
    monkeypatch.setattr(stage, "accuracy", lambda file, split: float(file.parts[-3] == better))
    run(fit=FIT, targets=["cpu"])
    return onnx.load(tmp_path / "out" / "cpu" / "model.onnx")


def test_what_was_trained_is_written_with_its_ranges(
    run, digits_data, digits_checkpoints, here, tmp_path, monkeypatch, caplog
):
    model = graphs_after(run, tmp_path, monkeypatch, "qat")
    ranges = json.loads((tmp_path / "out" / "qat" / "ranges.json").read_text())
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = {tensor: constants[f"{tensor}_scale"] for tensor in ranges if f"{tensor}_scale" in constants}
    assert len(scales) == 9
    for tensor, scale in scales.items():
        low, high = ranges[tensor]
        assert scale == pytest.approx((high - low) / 255, rel=1e-5)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    trained = tmp_path / "out" / "qat" / "model.safetensors"
    assert metadata["trained_sha256"] == checkpoint.sha256(trained) and "trained_ranges" not in metadata
    assert "did not help" not in caplog.text
    (tmp_path / "candidates").mkdir()
    export_onnx(
        ExportOnnx(parity_images=100, max_difference=0.1),
        data=digits_data, quantized=tmp_path / "out", **digits_checkpoints, out=tmp_path / "candidates",
    )  # fmt: skip
    logits = OnnxRunner(tmp_path / "candidates" / "int8" / "model.onnx")({"image": np.zeros((7, 1, 8, 8), np.uint8)})
    assert logits["logits"].shape == (7, 10)


def test_training_that_did_not_help_is_said_and_left(run, here, tmp_path, monkeypatch, caplog):
    model = graphs_after(run, tmp_path, monkeypatch, "ptq")
    assert "training with quantization did not help: 0.0000 on the validation split against 1.0000" in caplog.text
    assert "trained_sha256" not in {entry.key for entry in model.metadata_props}
    assert (tmp_path / "out" / "qat" / "model.safetensors").exists()


def test_a_tie_goes_to_what_was_not_trained(digits_data, monkeypatch, tmp_path):
    monkeypatch.setattr(stage, "accuracy", lambda file, split: 0.9)
    assert stage._compare({"ptq": tmp_path, "qat": tmp_path}, digits_data)["kept"] == "ptq"


def test_a_teacher_of_another_task_is_refused_before_anything_is_made(run, digits_checkpoints, tmp_path, monkeypatch):
    spec, network = checkpoint.load(digits_checkpoints["teacher"])
    checkpoint.save(tmp_path / "teacher", spec.model_copy(update={"labels": tuple("abcdefghij")}), network)
    monkeypatch.setitem(digits_checkpoints, "teacher", tmp_path / "teacher")
    with pytest.raises(ModelError, match="the teacher knows the labels a, b, c"):
        run(fit=FIT)
    assert list((tmp_path / "out").iterdir()) == []


class Copy:
    """A quantizer that leaves everything as it is."""

    def __call__(self, onnx_file, calibration, out, target):
        shutil.copy2(onnx_file, out)
        return {}


class Half:
    """A quantizer that gives up at the second target."""

    def __call__(self, onnx_file, calibration, out, target):
        if target == "tensorrt":
            raise ModelError("not for tensorrt")
        shutil.copy2(onnx_file, out)
        return {}


def test_what_fails_half_way_leaves_nothing(run, tmp_path):
    with pytest.raises(ModelError, match="not for tensorrt"):
        run(quantizer=Component(name=f"{__name__}:Half"), calibration_images=10)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_quantizer_without_ranges_cannot_be_trained_for(run):
    own = Component(name=f"{__name__}:Copy")
    with pytest.raises(ModelError, match=r"quantize\.quantizer fixes no ranges of activations"):
        run(quantizer=own, targets=["cpu"], fit=FIT)
