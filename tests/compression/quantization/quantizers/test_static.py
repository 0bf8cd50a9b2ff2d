"""int8 on real digits against float, then what makes it fast in each runtime, then what is refused."""

import collections

import numpy as np
import onnx
import pytest
from onnx_answers import logits

from pipeline import components
from pipeline.compression.quantization import writing
from pipeline.compression.quantization.proof import count_operators
from pipeline.compression.quantization.quantizers.static import Static
from pipeline.errors import ModelError, SettingsError
from pipeline.export import tensorrt
from pipeline.machine import cpu

CALIBRATION = 200


@pytest.fixture(scope="module", params=["cpu", "cpu folded", "tensorrt"])
def form(request, digits, float_file, tmp_path_factory):
    """(kind, file, what the quantizer counted)"""
    out = tmp_path_factory.mktemp("int8") / "model.onnx"
    quantizer = Static(fold="on" if request.param == "cpu folded" else "off")
    counted = quantizer(float_file, digits[0][:CALIBRATION], out, request.param.split()[0])
    return request.param, out, counted


@pytest.fixture(scope="module")
def plain_file(digits, float_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "model.onnx"
    Static(fold="off")(float_file, digits[0][:CALIBRATION], out, "cpu")
    return out


def test_int8_answers_nearly_as_float_does(form, digits, float_file):
    images = digits[0][CALIBRATION:]
    expected, found = logits(float_file, images), logits(form[1], images)
    assert np.abs(found - expected).mean() < 0.03 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.98


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_int8_takes_any_batch(form, digits, batch):
    images = digits[0][:64]
    together = logits(form[1], images)
    np.testing.assert_allclose(logits(form[1], images[:batch]), together[:batch], atol=1e-4)


def test_on_a_cpu_everything_from_the_pixels_on_is_integer(form):
    kind, file, counted = form
    if kind == "tensorrt":
        assert counted["quantized_tensors"] > 0
    else:
        # 6 convolutions, 2 additions, the pooling and the linear layer
        assert (counted["fused_integer_ops"], counted["float_ops_left"]) == (10, 0)
        assert onnx.load(file).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert {"Cast", "Mul"}.isdisjoint(node.op_type for node in onnx.load(file).graph.node)


def test_folding_columns_changes_no_bit(form, plain_file, digits):
    kind, file, _ = form
    if kind == "cpu folded":
        assert any("columns" in node.name for node in onnx.load(file).graph.node)
        np.testing.assert_array_equal(logits(file, digits[0]), logits(plain_file, digits[0]))
    else:
        assert not any("columns" in node.name for node in onnx.load(file).graph.node)


def test_for_tensorrt_all_is_symmetric_and_biases_stay_float(form):
    kind, file, _ = form
    graph = onnx.load(file).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    types = {constants[node.input[2]].dtype.name for node in pairs if node.input[2] in constants}
    if kind == "tensorrt":
        assert types == {"int8"}
        assert all(not constants[node.input[2]].any() for node in pairs)
        assert all(constants[node.input[2]].dtype == np.float32 for node in graph.node if node.op_type == "Conv")
    else:
        assert {"uint8", "int8"} <= types


def test_for_tensorrt_one_branch_of_an_addition_is_made_inside_its_convolution(form):
    kind, file, _ = form
    graph = onnx.load(file).graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    additions = [node for node in graph.node if node.op_type == "Add" and "preprocess" not in node.name]
    branches = [collections.Counter(producers[name] for name in node.input) for node in additions]
    expected = {"Conv": 1, "DequantizeLinear": 1} if kind == "tensorrt" else {"DequantizeLinear": 2}
    assert branches == [expected, expected]


def test_the_real_parser_takes_the_tensorrt_form_and_refuses_the_cpu_form(form):
    if tensorrt.missing("tensorrt_rtx", None):
        pytest.skip("tensorrt_rtx is not installed on this platform")
    kind, file, _ = form
    if kind == "tensorrt":
        plan = tensorrt.build("tensorrt_rtx", file, {"image": (1, 8, 8)}, (1, 4, 8), None)
        assert plan.int8_layers > 0
        assert len(plan.data) > 1000
    else:
        with pytest.raises(ModelError, match="Cure: its bias is quantized: build int8_tensorrt"):
            tensorrt.build("tensorrt_rtx", file, {"image": (1, 8, 8)}, (1, 4, 8), None)


def test_it_is_smaller_and_the_metadata_is_kept(form, float_file):
    kind, file, _ = form
    assert file.stat().st_size < float_file.stat().st_size
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert {"labels", "preprocessing", "flyweight"} <= set(metadata)
    assert (metadata["precision"], metadata["target"]) == ("int8", kind.split()[0])


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_other_calibrations_hold_too_and_print_nothing(calibration, digits, float_file, tmp_path, capfd):
    Static(calibration=calibration)(float_file, digits[0][:CALIBRATION], tmp_path / "model.onnx", "cpu")
    images = digits[0][CALIBRATION:]
    agreement = logits(tmp_path / "model.onnx", images).argmax(1) == logits(float_file, images).argmax(1)
    assert agreement.mean() > 0.9
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((4, 1, 9, 8), np.uint8), r"uint8 of shape \(4, 1, 9, 8\)"),
        (np.full((4, 1, 8, 8), np.nan, np.float32), r"float32 of shape \(4, 1, 8, 8\), 256 of its values NaN"),
        (np.zeros((0, 1, 8, 8), np.uint8), r"uint8 of shape \(0, 1, 8, 8\)"),
    ],
)
def test_calibration_images_of_another_kind_are_refused(images, found, float_file, tmp_path):
    with pytest.raises(ModelError, match=rf"raw images, uint8 of shape \(N, 1, 8, 8\); got {found}"):
        Static()(float_file, images, tmp_path / "model.onnx", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_range_of_7_bits_leaves_room_for_two_products_in_16(float_file, digits, tmp_path):
    Static(reduce_range=True)(float_file, digits[0][:CALIBRATION], tmp_path / "model.onnx", "cpu")
    assert _largest_weight(tmp_path / "model.onnx") == 64
    assert np.iinfo(np.int16).max >= 255 * (64 + 64)


@pytest.mark.parametrize(("vnni", "largest"), [(False, 64), (True, 127)])
def test_weights_have_7_bits_where_this_cpu_sums_in_16(vnni, largest, float_file, digits, tmp_path, monkeypatch):
    here = cpu.Cpu(machine="x86_64", model="m", flags=(), vnni=vnni, amx=False)
    monkeypatch.setattr(cpu, "describe", lambda: here)
    Static(fold="off")(float_file, digits[0][:CALIBRATION], tmp_path / "model.onnx", "cpu")
    Static()(float_file, digits[0][:CALIBRATION], tmp_path / "gpu.onnx", "tensorrt")
    assert (_largest_weight(tmp_path / "model.onnx"), _largest_weight(tmp_path / "gpu.onnx")) == (largest, 127)


def _largest_weight(file):
    tensors = map(onnx.numpy_helper.to_array, onnx.load(file).graph.initializer)
    return max(np.abs(one.astype(int)).max() for one in tensors if one.dtype == np.int8 and one.ndim > 1)


def test_a_layer_that_is_kept_float_has_float_weights(float_file, digits):
    quantizer = Static(fold="off")
    calibrated = quantizer.calibrate(float_file, digits[0][:32])
    convolution = next(node for node in calibrated.layers("cpu") if node.op_type == "Conv")
    graph = quantizer.quantize(calibrated, "cpu", [convolution.name]).graph
    constants = {tensor.name for tensor in graph.initializer}
    in_float = [node.name for node in graph.node if node.op_type == "Conv" and node.input[1] in constants]
    assert in_float == [convolution.name]


@pytest.mark.parametrize("position", range(6))
def test_onnx_runtime_leaves_float_what_is_kept_float(position, float_file, digits, tmp_path):
    quantizer = Static(fold="off")
    calibrated = quantizer.calibrate(float_file, digits[0][:32])
    names = [node.name for node in calibrated.layers("cpu") if node.op_type == "Conv"]
    onnx.save(quantizer.quantize(calibrated, "cpu", [names[position]]), tmp_path / "model.onnx")
    assert count_operators(tmp_path / "model.onnx")["fused_integer_ops"] == 9


def test_an_unknown_target_is_refused(float_file, digits, tmp_path):
    with pytest.raises(ModelError, match="target is 'gpu': the static quantizer knows cpu, tensorrt"):
        Static()(float_file, digits[0][:8], tmp_path / "model.onnx", "gpu")


def test_what_onnx_runtime_refuses_is_not_left_behind(float_file, digits, tmp_path, monkeypatch):
    def refuse(file):
        raise ModelError("ONNX Runtime cannot load it")

    monkeypatch.setattr(writing, "OnnxRunner", refuse)
    with pytest.raises(ModelError, match="cannot load it"):
        Static()(float_file, digits[0][:8], tmp_path / "model.onnx", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_percentile_out_of_range_is_refused():
    with pytest.raises(SettingsError, match=r"quantizers\.static: percentile is 12\.0: .*greater than or equal to 90"):
        components.build("quantizers", "static", {"percentile": 12.0})
