"""4-bit weights against the formula and ONNX Runtime's kernel, then both forms, then where it is not worth it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline import components
from pipeline.compression.quantization.quantizers.int4 import Int4, pack, quantize_blocks
from pipeline.errors import ModelError, SettingsError
from pipeline.runners.onnx_runner import OnnxRunner


def dequantized(matrix, block):
    integers, scales = quantize_blocks(matrix, block)
    return (integers * scales[:, None]).reshape(-1, matrix.shape[1])[: len(matrix)]


@pytest.mark.parametrize("block", [16, 32])
def test_each_block_is_rounded_to_sixteen_steps_of_its_largest_weight(block):
    matrix = np.random.default_rng(0).normal(size=(72, 5)).astype(np.float32)
    found = dequantized(matrix, block)
    for start in range(0, 72, block):
        for column in range(5):
            weights = matrix[start : start + block, column]
            step = abs(weights).max() / 8
            error = abs(found[start : start + block, column] - weights)
            assert error.max() <= step * 1.0001  # a whole step on the side that ends at 7, half of one elsewhere
            assert error[abs(weights).argmax()] < 1e-6
            assert len(np.unique(np.rint(found[start : start + block, column] / step))) <= 16


def test_a_block_of_zeros_stays_zero():
    assert not dequantized(np.zeros((32, 2), np.float32), 32).any()


def test_onnx_runtimes_kernel_reads_the_bytes_as_they_are_meant(tmp_path):
    chance = np.random.default_rng(1)
    matrix, rows = chance.normal(size=(72, 5)).astype(np.float32), chance.normal(size=(3, 72)).astype(np.float32)
    integers, scales = quantize_blocks(matrix, 32)
    node = helper.make_node(
        "MatMulNBits", ["image", "b", "s"], ["y"], domain="com.microsoft", K=72, N=5, bits=4, block_size=32
    )
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 72])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(pack(integers), "b"), numpy_helper.from_array(scales.T.copy(), "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "one.onnx")
    found = OnnxRunner(tmp_path / "one.onnx")({"image": rows})["y"]
    np.testing.assert_allclose(found, rows @ dequantized(matrix, 32), rtol=1e-4, atol=1e-4)


def test_both_targets_hold_the_same_weights(matrix_file, digits, tmp_path):
    answers = {}
    for target in ("cpu", "tensorrt"):
        counted = Int4()(matrix_file, digits[0][:8], tmp_path / f"{target}.onnx", target)
        assert counted["int4_layers"] == 2 and counted["int4_weights_share"] > 0.9
        answers[target] = OnnxRunner(tmp_path / f"{target}.onnx")({"image": digits[0][:64]})["logits"]
    np.testing.assert_allclose(answers["cpu"], answers["tensorrt"], rtol=1e-3, atol=1e-3)
    kinds = {target: [n.op_type for n in onnx.load(tmp_path / f"{target}.onnx").graph.node] for target in answers}
    assert kinds["cpu"].count("MatMulNBits") == 2 and "Gemm" not in kinds["cpu"]
    assert kinds["tensorrt"].count("DequantizeLinear") == 2
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "tensorrt.onnx").graph.initializer}
    assert TensorProto.INT4 in types


def test_smaller_blocks_are_nearer_to_float(matrix_file, digits, tmp_path):
    expected = OnnxRunner(matrix_file)({"image": digits[0]})["logits"]
    errors = []
    for block in (16, 128):
        Int4(block_size=block)(matrix_file, digits[0][:8], tmp_path / "model.onnx", "cpu")
        errors.append(np.abs(OnnxRunner(tmp_path / "model.onnx")({"image": digits[0]})["logits"] - expected).mean())
    assert errors[0] < errors[1]


def test_a_network_of_convolutions_is_refused_with_the_cure(float_file, digits, tmp_path):
    with pytest.raises(
        ModelError,
        match=r"matrix products \(MatMul, Gemm\), and they hold \d+% of this network's weights; .*"
        r"Set quantize\.quantizer\.name to static",
    ):
        Int4()(float_file, digits[0][:8], tmp_path / "model.onnx", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_network_is_judged_by_its_linear_layers_before_there_is_a_graph():
    Int4().check_network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(64, 64)))
    with pytest.raises(ModelError, match="they hold 32% of this network's weights"):
        Int4().check_network(nn.Sequential(nn.Conv2d(1, 14, 3, bias=False), nn.Linear(6, 10, bias=False)))


def test_a_block_size_that_no_kernel_has_is_refused():
    with pytest.raises(SettingsError, match=r"quantizers\.int4: block_size is 24: Input should be 16, 32, 64 or 128"):
        components.build("quantizers", "int4", {"block_size": 24})
