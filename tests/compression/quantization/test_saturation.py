"""16-bit sums: pairs against a plain loop, exact sums against ONNX Runtime, then models that do and do not depend on it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.compression.quantization.quantizers.dynamic import Dynamic
from pipeline.compression.quantization.quantizers.static import Static
from pipeline.compression.quantization.saturation import Emulation, _Sums, without_vnni
from pipeline.errors import ModelError
from pipeline.export import onnx_graph
from pipeline.machine import cpu
from pipeline.models.checkpoint import build
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.runners.onnx_runner import OnnxRunner

EXACT_HERE = not cpu.describe().sums_in_16_bits


@pytest.mark.parametrize("length", [1, 6, 9])
def test_each_pair_saturates_to_int16_before_it_is_added(length):
    chance = np.random.default_rng(length)
    left = chance.integers(128, 256, (5, length), dtype=np.uint8)
    right = chance.choice(np.array([-127, -90, 3, 90, 127], np.int8), (length, 4))
    expected = np.zeros((5, 4), np.int64)
    for row in range(5):
        for column in range(4):
            for at in range(0, length, 2):
                pair = sum(int(left[row, k]) * int(right[k, column]) for k in range(at, min(at + 2, length)))
                expected[row, column] += min(max(pair, -32768), 32767)
    sums = _Sums(saturate=True)
    np.testing.assert_array_equal(sums.product(left, right), expected)
    exact = left.astype(int) @ right.astype(int)
    assert sums.saturated == bool((expected != exact).any())
    np.testing.assert_array_equal(_Sums(saturate=False).product(left, right), exact)


@pytest.fixture(scope="module")
def images():
    """Dots and bars, bright enough for large products."""
    chance = np.random.default_rng(0)
    return (chance.integers(0, 256, (96, 2, 9, 8)) * (chance.random((96, 2, 9, 8)) > 0.3)).astype(np.uint8)


@pytest.fixture(scope="module")
def float_file(images, tmp_path_factory):
    file = tmp_path_factory.mktemp("saturation") / "float.onnx"
    spec = image_classifier(
        "resnet",
        {"width": 8, "blocks": [1, 1]},
        (2, 9, 8),
        tuple("abcdef"),
        Preprocessing(mean=(0.4, 0.4), std=(0.3, 0.3)),
    )
    torch.manual_seed(0)
    onnx_graph.export(spec, build(spec).eval(), file)
    return file


def quantized(float_file, images, file, **settings):
    Static(**settings)(float_file, images, file, "cpu")
    return file


@pytest.mark.skipif(not EXACT_HERE, reason="this CPU has 16-bit sums itself")
@pytest.mark.parametrize("fold", ["off", "on"])
def test_exact_sums_give_onnx_runtimes_own_answers(fold, float_file, images, tmp_path):
    file = quantized(float_file, images, tmp_path / "model.onnx", fold=fold)
    np.testing.assert_array_equal(
        Emulation(file)(images, saturate=False), OnnxRunner(file)({"image": images})["logits"]
    )


@pytest.mark.skipif(not EXACT_HERE, reason="this CPU has 16-bit sums itself")
def test_dynamic_quantization_is_emulated_too(float_file, images, tmp_path):
    Dynamic()(float_file, images, tmp_path / "model.onnx", "cpu")
    few = images[:8]  # one batch, as the range of activations depends on all of it
    np.testing.assert_allclose(
        Emulation(tmp_path / "model.onnx")(few, saturate=False),
        OnnxRunner(tmp_path / "model.onnx")({"image": few})["logits"], rtol=1e-4, atol=1e-5,
    )  # fmt: skip


LABELS = np.zeros(96, np.int64)


def test_weights_of_7_bits_are_valid_everywhere(float_file, images, tmp_path):
    file = quantized(float_file, images, tmp_path / "model.onnx", reduce_range=True)
    found = without_vnni(file, images, LABELS)
    assert (found.images, found.changed, found.saturating_operators) == (96, 0, 0)
    assert (found.valid_on, found.needs) == ("any CPU", ())
    assert "0.00% of the predictions change: the model is valid there too" in found.sentence


def test_weights_of_8_bits_saturate_somewhere(float_file, images, tmp_path):
    file = quantized(float_file, images, tmp_path / "model.onnx", fold="off", reduce_range=False)
    assert without_vnni(file, images[:16], LABELS[:16]).saturating_operators > 0


def test_a_file_without_integer_products_is_valid_everywhere(float_file, images):
    found = without_vnni(float_file, images[:16], LABELS[:16])
    expected = OnnxRunner(float_file)({"image": images[:16]})["logits"].argmax(1)
    assert found.accuracy == found.saturated_accuracy == (expected == 0).mean()
    assert (found.changed, found.saturating_operators, found.valid_on) == (0, 0, "any CPU")


@pytest.fixture
def doubtful(tmp_path):
    """A classifier of 2x2 images: on white, 64770 beats 51000, but 32767 does not."""
    kernel = np.array([[127, 127, 0, 0], [100, 0, 100, 0]], np.int8).reshape(2, 1, 2, 2)
    one, zero = np.array(1, np.float32), np.array(0, np.uint8)
    constants = {
        "kernel": kernel, "one": one, "zero": zero, "none": np.array(0, np.int8), "step": np.array(300, np.float32)
    }  # fmt: skip
    nodes = [
        helper.make_node("QLinearConv", ["image", "one", "zero", "kernel", "one", "none", "step", "zero"], ["sums"]),
        helper.make_node("DequantizeLinear", ["sums", "step", "zero"], ["answers"]),
        helper.make_node("Flatten", ["answers"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "doubtful", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_predictions_that_hang_on_a_sum_are_found(doubtful):
    images = np.full((10, 1, 2, 2), 255, np.uint8)
    images[5:] = 20  # too dark to saturate
    found = without_vnni(doubtful, images, np.zeros(10, np.int64))
    assert (found.changed, found.saturating_operators) == (0.5, 1)
    assert (found.accuracy, found.saturated_accuracy) == (1, 0.5)
    assert found.valid_on == "only CPUs with VNNI, AMX or ARM's dot products"
    assert "avx2" not in found.needs and "avx512_vnni" in found.needs
    assert "sums saturate in 1 operators and 50.00% of the predictions change: serve it only where" in found.sentence
    assert "reduce_range: true" in found.sentence


def test_the_form_for_tensorrt_is_refused(float_file, images, tmp_path):
    Static()(float_file, images, tmp_path / "model.onnx", "tensorrt")
    with pytest.raises(
        ModelError, match=r"model\.onnx is in the form for tensorrt: only what .* Give the file of target cpu"
    ):
        without_vnni(tmp_path / "model.onnx", images, LABELS)
