"""Dynamic quantization: what becomes of each operator, that channels have their own scales, and what is said of it."""

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from pipeline.compression.quantization.quantizers.dynamic import Dynamic
from pipeline.errors import ModelError
from pipeline.runners.onnx_runner import OnnxRunner


def answers(file, images):
    return OnnxRunner(file)({"image": images})["logits"]


@pytest.fixture(scope="module")
def made(float_file, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("dynamic") / "model.onnx"
    return out, Dynamic()(float_file, digits[0][:8], out, "cpu")


def test_one_scale_a_channel_is_nearer_to_float_than_onnx_runtimes_own(made, float_file, digits, tmp_path):
    quantize_dynamic(float_file, tmp_path / "plain.onnx", per_channel=True, weight_type=QuantType.QInt8)
    expected = answers(float_file, digits[0])
    errors = [np.abs(answers(file, digits[0]) - expected).mean() for file in (made[0], tmp_path / "plain.onnx")]
    assert errors[0] < errors[1]


def test_every_weight_is_a_byte_and_the_images_are_quantized_as_they_come(made):
    graph = onnx.load(made[0]).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("ConvInteger") == 6 and "Conv" not in kinds and "Gemm" not in kinds
    assert "DynamicQuantizeLinear" in kinds
    matrices = [t for t in map(onnx.numpy_helper.to_array, graph.initializer) if t.size > 8 * 10 - 1]
    assert {matrix.itemsize for matrix in matrices} == {1}


def test_slow_convolutions_are_counted_and_said_so(float_file, digits, tmp_path, caplog):
    counted = Dynamic()(float_file, digits[0][:8], tmp_path / "model.onnx", "cpu")
    assert counted["slow_convolutions"] == 6
    assert counted["float_ops_left"] > 6
    assert "makes the 6 convolutions of this graph smaller and slower than float" in caplog.text
    assert "quantize.quantizer.name to static" in caplog.text


def test_matrix_products_are_fused_and_nothing_is_said(matrix_file, digits, tmp_path, caplog):
    counted = Dynamic()(matrix_file, digits[0][:8], tmp_path / "model.onnx", "cpu")
    assert (counted["fused_integer_ops"], counted["slow_convolutions"]) == (2, 0)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_tensorrt_is_refused_with_the_cure(float_file, digits, tmp_path):
    with pytest.raises(
        ModelError, match=r"target is 'tensorrt': the dynamic quantizer knows cpu: .* quantize\.targets to \[cpu\]"
    ):
        Dynamic()(float_file, digits[0][:8], tmp_path / "model.onnx", "tensorrt")
    assert list(tmp_path.iterdir()) == []
