import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from serving_toys import artifact, images

from pipeline.errors import PromotionError
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.promotion import preflight


def test_it_answers_as_this_process_would(tmp_path):
    one, asked = artifact(tmp_path, 1.0), {"image": images(5)}
    answered = preflight.answers(one.onnx, asked, 1, 60.0)
    np.testing.assert_array_equal(answered["logits"], OnnxRunner(one.onnx)(asked)["logits"])


def test_what_cannot_be_loaded_is_refused_with_onnx_runtimes_words(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"this is no ONNX file")
    with pytest.raises(PromotionError, match=r"preflight: ONNX Runtime cannot run the model: .*INVALID_PROTOBUF"):
        preflight.answers(tmp_path / "junk.onnx", {"image": images(1)}, 1, 60.0)


def test_inputs_that_it_does_not_take_are_refused(tmp_path):
    with pytest.raises(PromotionError, match=r"cannot run the model: .*INVALID_ARGUMENT"):
        preflight.answers(artifact(tmp_path, 1.0).onnx, {"image": np.zeros((1, 7), np.uint8)}, 1, 60.0)


@pytest.mark.integration
def test_a_model_that_does_not_come_to_an_end_is_refused_in_time(tmp_path):
    with pytest.raises(
        PromotionError, match=r"had not answered its golden inputs after promote.preflight_timeout_s = 3 s"
    ):
        preflight.answers(endless(tmp_path / "endless.onnx"), {"x": np.ones(1, np.float32)}, 1, 3.0)


def test_a_process_that_is_killed_says_by_what(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.sys, "executable", str(executable(tmp_path / "python", "#!/bin/sh\nkill -11 $$\n")))
    with pytest.raises(PromotionError, match=r"cannot run the model \(ended by SIGSEGV\): it said nothing"):
        preflight.answers(artifact(tmp_path, 1.0).onnx, {"image": images(1)}, 1, 60.0)


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def endless(path):
    """A loop that goes round 2^62 times."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("Add", ["state", "state"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [helper.make_tensor("rounds", TensorProto.INT64, [], [2**62])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
