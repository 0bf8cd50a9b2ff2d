"""The quantize stage on real digits: what it leaves, what it says, what it refuses."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from training_toys import in_one_process

from pipeline.compression.quantization import choice
from pipeline.compression.quantization.calibration_set import calibration_images
from pipeline.compression.quantization.choice import answered_right
from pipeline.compression.quantization.proof import Proof
from pipeline.compression.quantization.saturation import WITH_VNNI
from pipeline.data.split import open_split
from pipeline.errors import ModelError, SettingsError
from pipeline.files import sha256
from pipeline.machine import cpu
from pipeline.models import checkpoint
from pipeline.models.spec import load_spec
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.settings.base import Component
from pipeline.settings.compression import Quantize
from pipeline.settings.export import ExportOnnx
from pipeline.settings.training import Distributed, Finetune
from pipeline.stages import quantize as stage
from pipeline.stages.export_onnx import export_onnx
from pipeline.stages.quantize import quantize

FIT = Finetune(epochs=1, batch_size=100, lr=0.01, crop_padding=0, horizontal_flip=False)


def places(digits_data, digits_checkpoints, root):
    """What the stage is called with beside its settings; it writes to ``root / "out"``."""
    return {
        "data": digits_data, "teacher": digits_checkpoints["teacher"], "pruned": digits_checkpoints["pruned"],
        "distributed": Distributed(), "seed": 3, "out": root / "out", "scratch": root / "scratch",
    }  # fmt: skip


@pytest.fixture
def run(digits_data, digits_checkpoints, tmp_path):
    """Returns a function from settings to what the stage returned; it writes to ``tmp_path / "out"``."""

    def call(**settings):
        (tmp_path / "out").mkdir()
        config = Quantize(**{"calibration_images": 200, **settings})
        return quantize(config, **places(digits_data, digits_checkpoints, tmp_path))

    return call


@pytest.fixture(scope="module")
def trained(digits_data, digits_checkpoints, tmp_path_factory):
    """(what the stage left after a training, the metrics that it returned)"""
    root = tmp_path_factory.mktemp("trained")
    (root / "out").mkdir()
    with in_one_process():
        config = Quantize(calibration_images=200, fit=FIT)
        metrics = quantize(config, **places(digits_data, digits_checkpoints, root))
    return root / "out", metrics


@pytest.fixture
def trained_before(trained, monkeypatch):
    """The training replaced by a copy of what it left before: these tests are of what comes after it."""
    record = json.loads((trained[0] / "quantization.json").read_text())["training"]["training"]
    monkeypatch.setattr(stage, "train_job", lambda job, _: shutil.copytree(trained[0] / "qat", job.out) and record)


def test_it_leaves_one_graph_a_target_and_the_record(quantized):
    out, _ = quantized
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == ["cpu/model.onnx", "model.json", "quantization.json", "tensorrt/model.onnx"]


def test_the_record_proves_that_it_is_integer_and_how_fast_and_where(quantized):
    out, metrics = quantized
    record = json.loads((out / "quantization.json").read_text())
    assert record["targets"]["cpu"]["float_ops_left"] == 0
    assert record["targets"]["cpu"]["fused_integer_ops"] == metrics["cpu_fused_integer_ops"] == 10
    proof = Proof.model_validate(record["proof"])
    assert list(proof.speed) == [1, 32, 64] and proof.fused_integer_ops == 10
    assert metrics["int8_speedup_batch_64"] == proof.speed[64].ratio > 0
    assert metrics["int8_agreement"] == proof.agreement >= 0.96
    assert record["serve"] == ("pruned" if proof.pace == "slower" else "int8")
    assert record["quantizer"] == {"name": "static", "calibration": "minmax"}


def test_it_is_answered_as_without_vnni_and_says_where_it_is_valid(quantized, digits_data):
    out, metrics = quantized
    record = json.loads((out / "quantization.json").read_text())
    found, validation = record["without_vnni"], open_split(digits_data, "validation")
    assert found["images"] == len(validation) == 200
    assert metrics["int8_accuracy_without_vnni"] == found["saturated_accuracy"] > 0.3
    assert metrics["int8_changed_without_vnni"] == found["changed"]
    if not (cpu.describe().sums_in_16_bits and found["changed"]):
        assert found["accuracy"] == answered_right(out / "cpu" / "model.onnx", validation).mean()
    assert record["valid_on"] == ("any CPU" if found["changed"] <= 0.001 else WITH_VNNI)
    metadata = {entry.key: entry.value for entry in onnx.load(out / "cpu" / "model.onnx").metadata_props}
    assert (metadata["valid_on"], json.loads(metadata["needs_cpu_flags"])) == (record["valid_on"], found["needs"])


@pytest.mark.extra
@pytest.mark.integration
def test_without_the_form_for_cpus_nothing_is_said_of_them(run, tmp_path):
    metrics = run(targets=["tensorrt"])
    assert not any(name.startswith("int8_") for name in metrics)
    record = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert set(record) == {"quantizer", "calibration", "targets"}


def test_the_calibration_set_is_fingerprinted(quantized, digits_data):
    record = json.loads((quantized[0] / "quantization.json").read_text())["calibration"]
    images, again = calibration_images(digits_data, 200, (1, 8, 8), seed=3)
    assert record == again
    assert record["sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    _, other = calibration_images(digits_data, 200, (1, 8, 8), seed=4)
    assert other["sha256"] != record["sha256"]


def test_a_target_that_the_quantizer_does_not_write_is_refused(run, tmp_path):
    with pytest.raises(
        SettingsError, match=r"quantize\.targets is \[cpu, tensorrt\], but the quantizer 'dynamic' writes cpu"
    ):
        run(quantizer={"name": "dynamic"})
    assert list((tmp_path / "out").iterdir()) == []


def test_more_calibration_images_than_there_are_is_refused(run, tmp_path):
    with pytest.raises(ModelError, match=r"quantize\.calibration_images is 1301, but .* has 1300 training images"):
        run(calibration_images=1301)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_misspelt_quantizer_setting_is_refused_with_the_near_miss(run):
    with pytest.raises(
        SettingsError, match=r"quantizers\.static has no setting 'calibraton'.*did you mean 'calibration'"
    ):
        run(quantizer={"name": "static", "calibraton": "minmax"}, calibration_images=10)


@pytest.mark.integration
@pytest.mark.slow
def test_with_training_the_better_of_the_two_is_kept(trained, digits_data, digits_checkpoints):
    out, metrics = trained
    record = json.loads((out / "quantization.json").read_text())
    told = record["training"]["validation_accuracy"]
    kept = "qat" if told["qat"] > told["ptq"] and record["training"]["p"] <= 0.05 else "ptq"
    assert record["training"]["kept"] == kept and metrics["qat_kept"] == (kept == "qat")
    assert answered_right(out / "cpu" / "model.onnx", open_split(digits_data, "validation")).mean() == told[kept]
    assert metrics["ptq_validation_accuracy"] == told["ptq"] and metrics["qat_validation_accuracy"] == told["qat"]
    assert metrics["qat_gain"] == pytest.approx(told["qat"] - told["ptq"])
    simulated = record["training"]["training"]["validation_accuracy"]
    assert told["qat"] == pytest.approx(simulated, abs=0.011), "two of 200 images may be on the other side of a tie"
    spec, _ = checkpoint.load(out / "qat")
    assert spec.folded and spec.pruning == load_spec(digits_checkpoints["pruned"]).pruning


def graphs_after(run, tmp_path, monkeypatch, better):
    """The cpu graph that is left where `better` measures better than the other."""
    monkeypatch.setattr(choice, "answered_right", lambda file, split: np.full(len(split), file.parts[-3] == better))
    run(fit=FIT, targets=["cpu"])
    return onnx.load(tmp_path / "out" / "cpu" / "model.onnx")


@pytest.mark.extra
@pytest.mark.integration
@pytest.mark.slow
def test_what_was_trained_is_written_with_its_ranges(
    run, digits_data, digits_checkpoints, trained_before, tmp_path, monkeypatch, caplog
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
    assert metadata["trained_sha256"] == sha256(trained) and "trained_ranges" not in metadata
    assert "did not help" not in caplog.text
    (tmp_path / "candidates").mkdir()
    export_onnx(
        ExportOnnx(parity_images=100, max_difference=0.1),
        data=digits_data, quantized=tmp_path / "out", **digits_checkpoints, out=tmp_path / "candidates",
    )  # fmt: skip
    logits = OnnxRunner(tmp_path / "candidates" / "int8" / "model.onnx")({"image": np.zeros((7, 1, 8, 8), np.uint8)})
    assert logits["logits"].shape == (7, 10)


@pytest.mark.extra
@pytest.mark.integration
@pytest.mark.slow
def test_training_that_did_not_help_is_said_and_left(run, trained_before, tmp_path, monkeypatch, caplog):
    model = graphs_after(run, tmp_path, monkeypatch, "ptq")
    assert "training with quantization did not help: 0.0000 on the validation split against 1.0000" in caplog.text
    assert "trained_sha256" not in {entry.key for entry in model.metadata_props}
    assert (tmp_path / "out" / "qat" / "model.safetensors").exists()


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


@pytest.mark.extra
@pytest.mark.integration
def test_what_fails_half_way_leaves_nothing(run, tmp_path):
    with pytest.raises(ModelError, match="not for tensorrt"):
        run(quantizer=Component(name=f"{__name__}:Half"), calibration_images=10)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.integration
def test_a_quantizer_without_ranges_cannot_be_trained_for(run):
    own = Component(name=f"{__name__}:Copy")
    with pytest.raises(ModelError, match=r"quantize\.quantizer fixes no ranges of activations"):
        run(quantizer=own, targets=["cpu"], fit=FIT)
