"""The files of a candidate: which checkpoint a quantized one rounds, and copies that were made from other weights."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.errors import ModelError
from pipeline.export.candidate import content, copy_quantized, rounded_checkpoint, says
from pipeline.files import sha256
from pipeline.models import checkpoint
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.spec import Preprocessing, image_classifier

SPEC = image_classifier(
    "resnet", {"width": 4, "blocks": [1]}, (1, 8, 8), ("a", "b"), Preprocessing(mean=(0.5,), std=(0.25,))
)


@pytest.fixture
def saved(tmp_path):
    """Returns a function from a name to a checkpoint of its own weights."""

    def make(name):
        torch.manual_seed(sum(name.encode()))
        checkpoint.save(tmp_path / name, SPEC, checkpoint.build(SPEC))
        return Checkpoint.load(tmp_path / name)

    return make


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a graph with this metadata as a quantizer leaves it, and gives its directory."""

    def make(**metadata):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        model = helper.make_model(helper.make_graph([], "empty", [value], [value]))
        helper.set_model_props(model, metadata)
        form = tmp_path / f"form{len(list(tmp_path.iterdir()))}"
        form.mkdir()
        onnx.save(model, form / "model.onnx")
        return form

    return make


def test_what_was_trained_while_it_rounded_is_compared_with_that(saved, write):
    original, trained = saved("pruned"), saved("qat")
    plain, rounded = write(), write(trained_sha256=trained.weights_sha256)
    assert rounded_checkpoint(plain / "model.onnx", original, trained.directory) is original
    assert rounded_checkpoint(rounded / "model.onnx", original, trained.directory).directory == trained.directory
    with pytest.raises(ModelError, match=r"was quantized from weights .* has .*: run `quantize` again"):
        rounded_checkpoint(rounded / "model.onnx", original, original.directory)


def test_a_copy_says_what_it_was_made_from(saved, write, tmp_path):
    original = saved("pruned")
    form = write(weights_sha256=original.weights_sha256, precision="int8")
    file = copy_quantized(form, "int8", original, {"dataset": "digits", "data_sha256": "ab"}, tmp_path)
    assert file == tmp_path / "int8" / "model.onnx"
    assert says(file) == {
        "weights_sha256": sha256(original.directory / "model.safetensors"), "precision": "int8", "dataset": "digits",
        "data_sha256": "ab",
    }  # fmt: skip
    assert (file.parent / "model.json").read_bytes() == (original.directory / "model.json").read_bytes()
    assert content(file) == {"sha256": sha256(file), "size_bytes": file.stat().st_size}


def test_a_copy_of_other_weights_is_refused(saved, write, tmp_path):
    original, form = saved("pruned"), write(weights_sha256="other")
    with pytest.raises(
        ModelError, match=r"was quantized from other weights \(other\) .* give export_onnx the 'prune' run"
    ):
        copy_quantized(form, "int8", original, {}, tmp_path)
