"""One calling convention: PyTorch and ONNX Runtime on the same network, and what happens where one cannot run."""

import gc
import weakref

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from pipeline.errors import ModelError
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.records.engines import Engine, Profile
from pipeline.runners.onnx_runner import OnnxRunner, session_options
from pipeline.runners.runner import TensorRTRunner, TorchRunner


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    spec = image_classifier(
        "resnet", {"width": 4, "blocks": [1]}, (1, 6, 6), ("a", "b", "c"), Preprocessing(mean=(0.4,), std=(0.3,))
    )
    directory = tmp_path_factory.mktemp("tiny")
    checkpoint.save(directory, spec, checkpoint.build(spec))
    return directory


@pytest.fixture(scope="module")
def halver(tmp_path_factory):
    """An ONNX file without any network: pixels / 2."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["pixels", "half"], ["logits"]),
        ],
        "halver",
        [value("image", onnx.TensorProto.UINT8, ["batch", 3])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("half", onnx.TensorProto.FLOAT, [1], [0.5])],
    )
    file = tmp_path_factory.mktemp("halver") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def test_pytorch_answers_as_the_network_with_preprocessing_does(directory):
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 6, 6), dtype=np.uint8)
    _, network = checkpoint.load(directory)
    with torch.inference_mode():
        expected = network((torch.from_numpy(images).float() / 255 - 0.4) / 0.3).numpy()
    runner = TorchRunner(directory)
    np.testing.assert_allclose(runner({"image": images})["logits"], expected, atol=1e-5)
    assert runner.name.startswith("torch:tiny")


@pytest.mark.filterwarnings("error")
def test_pytorch_takes_a_read_only_batch_without_a_warning(directory):
    images = np.zeros((2, 1, 6, 6), np.uint8)
    images.flags.writeable = False
    assert TorchRunner(directory)({"image": images})["logits"].shape == (2, 3)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_onnx_runtime_answers_at_any_batch(halver, batch):
    pixels = np.arange(3 * batch, dtype=np.uint8).reshape(batch, 3)
    found = OnnxRunner(halver)({"image": pixels})
    np.testing.assert_array_equal(found["logits"], pixels / 2)
    assert list(found) == ["logits"]


def test_threads_sleep_rather_than_spin():
    options = session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("make", [lambda files: OnnxRunner(files[0]), lambda files: TorchRunner(files[1])])
def test_a_closed_runner_has_let_go_of_its_model(halver, directory, make):
    runner = make((halver, directory))
    held = [weakref.ref(value) for value in vars(runner).values() if not isinstance(value, str | list)]
    assert held
    runner.close()
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"image": np.zeros((2, 4), np.uint8)}, r"refuses image uint8\(2, 4\): .*invalid dimensions"),
        ({"image": np.zeros((2, 3), np.float32)}, r"refuses image float32\(2, 3\): .*(?i:unexpected input data type)"),
        ({"picture": np.zeros((2, 3), np.uint8)}, r"refuses picture uint8\(2, 3\): .*image"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_was_given(halver, inputs, text):
    with pytest.raises(ModelError, match=f"(?s){text}"):
        OnnxRunner(halver)(inputs)


def test_a_checkpoint_that_was_read_is_not_read_again(directory, monkeypatch):
    loaded = checkpoint.Checkpoint.load(directory)
    images = np.zeros((2, 1, 6, 6), np.uint8)
    expected = TorchRunner(directory)({"image": images})["logits"]
    monkeypatch.setattr(checkpoint, "load", None)
    np.testing.assert_array_equal(TorchRunner(loaded)({"image": images})["logits"], expected)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*model\.onnx: "):
        OnnxRunner(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*absent\.onnx: "):
        OnnxRunner(tmp_path / "absent.onnx")


def test_an_engine_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    profile = Profile(min=1, opt=1, max=1)
    engine = Engine(
        candidate="pruned", file="pruned/model.plan", sha256="", size_bytes=1, onnx_sha256="", builder="tensorrt_rtx",
        builder_version="1", gpu=None, driver=None, targets=("SM89",), profile=profile, build_seconds=1.0,
        layers_from="network", layers=0, precisions={},
    )  # fmt: skip
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "engine.json").write_text(engine.model_dump_json())
    with pytest.raises(
        ModelError, match=r"model\.plan needs a GPU, and PyTorch sees none .* measure the ONNX candidate"
    ):
        TensorRTRunner(tmp_path / "pruned" / "model.plan")
