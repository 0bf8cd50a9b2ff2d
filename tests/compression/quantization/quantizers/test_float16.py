"""16-bit floats: against NumPy, what the graph is made of, and where the range or the runtime ends."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from pipeline.compression.quantization.half import halve
from pipeline.compression.quantization.quantizers.bf16 import Bf16
from pipeline.compression.quantization.quantizers.fp16 import Fp16
from pipeline.errors import ModelError

KINDS = {"float16": (Fp16, np.float16), "bfloat16": (Bf16, ml_dtypes.bfloat16)}


def weights(file):
    constants = onnx.load(file).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in constants}


@pytest.fixture(scope="module", params=KINDS)
def made(request, float_file, digits, tmp_path_factory):
    """(NumPy's type, file, what was counted)"""
    quantizer, dtype = KINDS[request.param]
    out = tmp_path_factory.mktemp(request.param) / "model.onnx"
    return dtype, out, quantizer()(float_file, digits[0][:32], out, "tensorrt")


def test_weights_are_rounded_as_numpy_does_it_and_preprocessing_stays_float(made, float_file):
    dtype, file, _ = made
    before, after = weights(float_file), weights(file)
    assert set(before) == set(after)
    for name, values in before.items():
        kept = name.startswith("pixel_") or values.dtype != np.float32
        np.testing.assert_array_equal(after[name], values if kept else values.astype(dtype))
        assert after[name].dtype == (values.dtype if kept else dtype)


def test_between_two_casts_everything_is_16_bits(made, float_file):
    dtype, file, counted = made
    model = onnx.load(file)
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    half = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inner = [node for node in model.graph.node if not node.name.startswith(("preprocess/", "half/"))]
    assert {types[node.output[0]] for node in inner} == {half}
    assert counted["half_ops"] == len(inner) == len(onnx.load(float_file).graph.node) - 3
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 3


def test_the_file_is_about_half_as_large(made, float_file):
    assert made[1].stat().st_size < 0.75 * float_file.stat().st_size


def test_on_a_cpu_fp16_brings_no_speed_and_says_so(float_file, digits, tmp_path, caplog):
    Fp16()(float_file, digits[0][:8], tmp_path / "model.onnx", "cpu")
    assert "fp16 halves the file and brings no speed on an x86 CPU" in caplog.text


def test_bf16_is_for_tensorrt_only(float_file, digits, tmp_path):
    with pytest.raises(
        ModelError, match=r"target is 'cpu': the bf16 quantizer knows tensorrt: .*no bfloat16 kernels on a CPU.*fp16"
    ):
        Bf16()(float_file, digits[0][:8], tmp_path / "model.onnx", "cpu")
    assert list(tmp_path.iterdir()) == []


def scaled(float_file, file, factor):
    """`float_file` with the first kernel `factor` times as large."""
    model = onnx.load(float_file)
    kernel = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * np.float32(factor), kernel.name))
    onnx.save(model, file)
    return model


def test_activations_beyond_float16_are_refused(float_file, digits, tmp_path):
    scaled(float_file, tmp_path / "large.onnx", 1e6)
    with pytest.raises(ModelError, match=r"activation '.*' reaches .* and float16 ends at 65504: .* bf16"):
        Fp16()(tmp_path / "large.onnx", digits[0][:8], tmp_path / "model.onnx", "cpu")
    assert not (tmp_path / "model.onnx").exists()


def test_weights_beyond_float16_are_refused_and_fit_into_bfloat16(float_file, tmp_path):
    model = scaled(float_file, tmp_path / "large.onnx", 1e8)
    halve(onnx.ModelProto.FromString(model.SerializeToString()), TensorProto.BFLOAT16)
    with pytest.raises(ModelError, match=r"weight '.*' reaches .*, and float16 ends at 65504: .* bf16"):
        halve(model, TensorProto.FLOAT16)
