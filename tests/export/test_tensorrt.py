"""Graphs made by hand, given to the real parser and builder of TensorRT-RTX, which need no GPU; and what becomes of layers."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ModelError
from pipeline.export import tensorrt
from pipeline.machine.gpu import Gpu
from pipeline.machine.workspace import SOURCE

GPU = Gpu("Test GPU", "580.1", "SM89")
needs_rtx = pytest.mark.skipif(
    tensorrt.missing("tensorrt_rtx", None) is not None, reason="tensorrt_rtx is not installed"
)
node = helper.make_node


def build(directory, nodes, opset=20, profile=(1, 4, 8), sparse=False, **constants):
    """Build (batch, 3, 8, 8) float -> y from these nodes and constants."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    domains = {"": opset, **{one.domain: 1 for one in nodes if one.domain}}
    imports = [helper.make_opsetid(*entry) for entry in domains.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [answer], tensors), opset_imports=imports, ir_version=10
    )
    (directory / "cand").mkdir()
    onnx.save(model, directory / "cand" / "model.onnx")
    return tensorrt.build("tensorrt_rtx", directory / "cand" / "model.onnx", {"x": (3, 8, 8)}, profile, None, sparse)


SCALE, KERNEL = np.float32(0.1), np.zeros((4, 3, 3, 3), np.float32)
HALF = np.ones((1, 3, 1, 1), np.float16)


def quantized(**constants):
    return [node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
            node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize")], {"s": SCALE, **constants}  # fmt: skip


REFUSED = {
    "a zero point": (
        *quantized(z=np.uint8(3)),
        r"node 'quantize' \(QuantizeLinear\): .*zero point is not supported.*: build int8_tensorrt, which is symmetric",
    ),
    "a quantized bias": (
        [
            node("DequantizeLinear", ["b", "s"], ["d"], "bias"),
            node("Conv", ["x", "w", "d"], ["y"], "conv"),
        ],
        {"b": np.zeros(4, np.int32), "s": SCALE, "w": KERNEL},
        r"node 'bias' \(DequantizeLinear\): .*Int32 but must have type .*: build int8_tensorrt, whose biases stay float",
    ),
    "two types that meet": (
        [node("Add", ["x", "h"], ["y"], "sum")],
        {"h": HALF},
        r"node 'sum' \(Add\): .* types Float and Half.* Cure: the types meet without a cast",
    ),
    "a kernel of another type": (
        [node("Cast", ["x"], ["h"], "cast", to=TensorProto.FLOAT16), node("Conv", ["h", "w"], ["y"], "conv")],
        {"w": KERNEL},
        r"node 'conv' \(Conv\): .*must be of same type.* Cure: the types meet without a cast",
    ),
    "a type that it lacks": (
        [node("Cast", ["x"], ["y"], "cast", to=TensorProto.INT16)],
        {},
        r"node 'cast' \(Cast\): .*Unsupported data type.* Cure: TensorRT has no such type: compute in float32",
    ),
    "an operator that it lacks": (
        [node("Det", ["x"], ["y"], "determinant")],
        {},
        r"node 'determinant' \(Det\): it knows no such operator. Cure: replace that operator in the model, or take",
    ),
    "an operator of one's own": (
        [node("Foo", ["x"], ["y"], "mine", domain="my.operators")],
        {},
        r"node 'mine' \(Foo\): it knows no such operator. Cure: replace that operator in the model",
    ),
    "dynamic quantization": (
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "range"),
            node("DequantizeLinear", ["q", "s", "z"], ["y"], "back"),
        ],
        {},
        r"node 'range' \(DynamicQuantizeLinear\): .* Cure: its ranges are found while it runs.* static or qat",
    ),
    "int4 as ONNX Runtime has it": (
        [
            node("Flatten", ["x"], ["f"], "flat"),
            node("MatMulNBits", ["f", "w", "s"], ["y"], "int4", domain="com.microsoft", K=192, N=4, bits=4, block_size=32),
        ],
        {"w": np.zeros((4, 6, 16), np.uint8), "s": np.ones(24, np.float32)},
        r"node 'int4' \(MatMulNBits\): .* Cure: this form of int4 is ONNX Runtime's own: take the candidate out",
    ),
}  # fmt: skip


@needs_rtx
@pytest.mark.parametrize(("nodes", "constants", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refused_node_is_named_with_a_cure(tmp_path, nodes, constants, message):
    with pytest.raises(ModelError, match=r"tensorrt_rtx refuses cand/model.onnx: " + message) as error:
        build(tmp_path, nodes, **constants)
    assert "cudaError" not in str(error.value)


@needs_rtx
def test_a_batch_size_in_the_graph_is_found_when_it_is_built(tmp_path):
    message = r"tensorrt_rtx cannot build cand: .*incompatible dimensions.* Cure: a batch size is written as a number"
    with pytest.raises(ModelError, match=message):
        build(tmp_path, [node("Add", ["x", "two"], ["y"], "sum")], two=np.ones((2, 3, 8, 8), np.float32))


AFTER_A_FAILURE = """
import gc, sys
from pathlib import Path
from pipeline.export import tensorrt
from pipeline.machine.gpu import Gpu
from pipeline.errors import ModelError

def attempt():
    return tensorrt.build("tensorrt_rtx", Path(sys.argv[1]), {"x": (3, 8, 8)}, (1, 4, 8), None)

class Kept:
    pass

gc.set_threshold(10**6)
try:
    attempt()
except ModelError as error:
    kept = Kept()
    kept.error, kept.itself = error, kept
    del kept  # garbage that only the collector finds, with the first builder in it
made = tensorrt._logger

def collecting(library):  # a logger during whose work the collector runs, if it is on
    class Collecting(type(made(library))):
        def log(self, severity, message):
            if gc.isenabled():
                gc.collect()
            super().log(severity, message)
    return Collecting()

tensorrt._logger = collecting
try:
    attempt()
except ModelError as error:
    print(gc.isenabled(), str(error)[:20])
"""


@needs_rtx
def test_a_failed_build_that_is_collected_during_the_next_one_does_not_stop_it(tmp_path):
    with pytest.raises(ModelError):
        build(tmp_path, [node("Det", ["x"], ["y"], "determinant")])
    command = [sys.executable, "-c", AFTER_A_FAILURE, str(tmp_path / "cand" / "model.onnx")]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True tensorrt_rtx refuses\n"


@needs_rtx
def test_the_types_of_the_graph_are_those_of_the_layers(tmp_path):
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        node("Cast", ["d"], ["h"], "narrow", to=TensorProto.FLOAT16),
        node("Conv", ["h", "w"], ["c"], "conv"),
        node("Cast", ["c"], ["y"], "widen", to=TensorProto.FLOAT),
    ]
    plan = build(tmp_path, nodes, s=SCALE, z=np.int8(0), w=KERNEL.astype(np.float16))
    assert len(plan.data) > 1000
    assert plan.layers_from == "network"
    assert plan.int8_layers == plan.precisions["int8"] == 1
    kinds = {layer.name: (layer.kind, layer.precisions) for layer in plan.layers}
    assert kinds["conv"] == ("CONVOLUTION", {"float16"})
    assert kinds["quantize"] == ("QUANTIZE", {"int8"})
    described = plan.describe()
    assert described["from"] == "network" and "inspector" not in described
    assert {"name": "conv", "kind": "CONVOLUTION", "types": ("HALF",)} in described["layers"]


@needs_rtx
@pytest.mark.parametrize("sparse", [False, True])
def test_the_builder_looks_for_zeros_only_where_it_is_asked_to(tmp_path, monkeypatch, sparse):
    library, configs = tensorrt.module("tensorrt_rtx"), []
    make = library.Builder.create_builder_config
    monkeypatch.setattr(
        library.Builder, "create_builder_config", lambda builder: configs.append(make(builder)) or configs[-1]
    )
    kernel = np.tile(np.float32([1, 2, 0, 0]).reshape(1, 4, 1, 1), (8, 1, 3, 3))
    wide = np.ones((4, 3, 1, 1), np.float32)
    nodes = [node("Conv", ["x", "a"], ["h"], "wide"), node("Conv", ["h", "b"], ["y"], "sparse")]
    plan = build(tmp_path, nodes, sparse=sparse, a=wide, b=kernel)
    (config,) = configs
    assert config.get_flag(library.BuilderFlag.SPARSE_WEIGHTS) is sparse
    assert plan.sparse_layers is None, "TensorRT-RTX builds for many GPUs and does not say what it picked"


def test_what_tensorrt_says_of_sparse_layers_is_understood():
    """The lines that its developer guide shows; the second names what was picked."""
    eligible = "(Sparsity) Layers eligible for sparse math: conv1, conv2 + relu"
    picked = "(Sparsity) TRT inference plan picked sparse implementation for layers: conv1, conv2 + relu"
    assert tensorrt._sparse_layers([eligible, picked]) == ("conv1", "conv2 + relu")
    assert tensorrt._sparse_layers([eligible, picked[: picked.index(":") + 2]]) == ()
    assert tensorrt._sparse_layers([eligible]) == ()
    assert tensorrt._sparse_layers([]) is None


def test_the_inspectors_words_for_types_are_understood():
    said = {
        "Layers": [
            {"Name": "conv1", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Row major linear FP16"}]},
            {"Name": "conv2", "LayerType": "CaskConvolution",
             "Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
            {"Name": "conv3", "LayerType": "CaskConvolution", "Outputs": [{"Datatype": "Float"}]},
            {"Name": "cast", "LayerType": "Reformat", "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]},
            "a name alone",
        ]
    }  # fmt: skip
    plan = tensorrt.Plan(b"", tensorrt._engine_layers(said), "engine", said)
    assert plan.precisions == {"N/A due to dynamic shapes": 1, "float16": 1, "float32": 1, "int8": 1}
    assert plan.describe()["inspector"] is said


@pytest.mark.parametrize(
    ("words", "meant"),
    [("HALF", "float16"), ("BF16", "bfloat16"), ("BFloat16", "bfloat16"), ("FLOAT", "float32"), ("FP32", "float32"),
     ("INT8", "int8"), ("UINT8", "uint8"), ("INT4", "int4"), ("FP8", "fp8"), ("INT32", "int32"), ("BOOL", "bool")],
)  # fmt: skip
def test_types_have_our_names(words, meant):
    assert tensorrt._precision(words) == meant


def test_auto_takes_tensorrt_on_a_gpu_and_rtx_without(monkeypatch):
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object())
    assert tensorrt.choose("auto", GPU) == ("tensorrt", "")
    assert tensorrt.choose("auto", None) == ("tensorrt_rtx", "")
    assert tensorrt.choose("tensorrt_rtx", GPU) == ("tensorrt_rtx", "")


def test_tensorrt_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object())
    assert tensorrt.choose("tensorrt", None) == (
        None,
        "build_tensorrt.builder is 'tensorrt': tensorrt: there is no GPU to time kernels on",
    )
