"""The quantize stage on real digits: what it leaves, what it says, what it refuses."""

import hashlib
import json

import numpy as np
import pytest

from pipeline.config import Quantize
from pipeline.data import open_split
from pipeline.errors import ModelError, SettingsError
from pipeline.stages import quantize as stage
from pipeline.stages.quantize import calibration_images, prove, quantize


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


def test_more_calibration_images_than_there_are_is_refused(digits_data, digits_checkpoints, tmp_path):
    with pytest.raises(ModelError, match=r"quantize\.calibration_images is 1301, but .* has 1300 training images"):
        quantize(
            Quantize(calibration_images=1301),
            data=digits_data, pruned=digits_checkpoints["pruned"], seed=1, out=tmp_path,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size_are_refused(digits_data):
    with pytest.raises(ModelError, match=r"has images of \(1, 8, 8\), the model takes \(3, 32, 32\)"):
        calibration_images(digits_data, 10, (3, 32, 32), seed=1)


def test_a_misspelt_quantizer_setting_is_refused_with_the_near_miss(digits_data, digits_checkpoints, tmp_path):
    config = Quantize(quantizer={"name": "static", "calibraton": "minmax"}, calibration_images=10)
    with pytest.raises(
        SettingsError, match=r"quantizers\.static has no setting 'calibraton'.*did you mean 'calibration'"
    ):
        quantize(config, data=digits_data, pruned=digits_checkpoints["pruned"], seed=1, out=tmp_path)
