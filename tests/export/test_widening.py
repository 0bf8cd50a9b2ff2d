"""Against ONNX Runtime's own float16, and against PyTorch's bfloat16."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.export.widening import widened

CHANCE = np.random.default_rng(3)
KERNEL = CHANCE.normal(0, 0.4, (4, 2, 3, 3)).astype(np.float32)
BIAS = CHANCE.normal(0, 0.4, 4).astype(np.float32)
IMAGES = CHANCE.normal(0, 1, (5, 2, 6, 6)).astype(np.float32)


def narrow_model(dtype):
    """image (float32) -> Cast -> Conv -> Relu -> Add of what the convolution gave -> Cast -> answer (float32)"""
    nodes = [
        helper.make_node("Cast", ["image"], ["narrow"], to=dtype),
        helper.make_node("Conv", ["narrow", "kernel", "bias"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["map"], ["positive"]),
        helper.make_node("Add", ["positive", "map"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["answer"], to=TensorProto.FLOAT),
    ]
    narrow = helper.tensor_dtype_to_np_dtype(dtype)
    graph = helper.make_graph(
        nodes, "narrow",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 6, 6])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [numpy_helper.from_array(values.astype(narrow), name) for name, values in (("kernel", KERNEL), ("bias", BIAS))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def answers(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["answer"], {"image": IMAGES})[0]


def test_float16_answers_as_onnx_runtime_does():
    model = narrow_model(TensorProto.FLOAT16)
    np.testing.assert_allclose(answers(widened(model)), answers(model), rtol=2**-9, atol=5e-3)


def test_bfloat16_answers_as_pytorch_does():
    model = narrow_model(TensorProto.BFLOAT16)
    with pytest.raises(Exception, match="Conv"):
        answers(model)
    image, kernel, bias = (torch.from_numpy(values).bfloat16() for values in (IMAGES, KERNEL, BIAS))
    found = torch.nn.functional.conv2d(image, kernel, bias, padding=1)
    expected = (found.relu() + found).float().numpy()
    np.testing.assert_allclose(answers(widened(model)), expected, rtol=2**-6, atol=0.02)


def test_each_tensor_is_rounded_and_nothing_else_changes():
    model = narrow_model(TensorProto.BFLOAT16)
    before = model.SerializeToString()
    wide = widened(model)
    onnx.checker.check_model(wide, full_check=True)
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(wide).graph.value_info}
    assert {types[name] for name in ("narrow", "map", "positive", "sum")} == {TensorProto.BFLOAT16}
    assert {types[node.output[0]] for node in wide.graph.node if node.op_type != "Cast"} == {TensorProto.FLOAT}
    assert wide.graph.input == model.graph.input and wide.graph.initializer == model.graph.initializer
    assert model.SerializeToString() == before
