import numpy as np
import onnx
import onnx_toys as toys
import pytest
from onnx import TensorProto, helper
from serving_toys import SHAPE, write_onnx

from pipeline.errors import PromotionError
from pipeline.models.onnx_spec import read_spec
from pipeline.serving.triton.artifact import from_file, golden_answers, made_up, read_inputs
from pipeline.serving.triton.repository import TYPES


def junk(path):
    path.write_bytes(b"\x0athis is none")
    return path


def shapes(tensors):
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


def test_the_spec_is_what_the_graph_says(tmp_path):
    spec = read_spec(write_onnx(tmp_path / "m.onnx", 1.0))
    assert shapes(spec.inputs) == {"image": ("uint8", SHAPE)}
    assert shapes(spec.outputs) == {"logits": ("float32", (3,))}
    assert (spec.batched, spec.labels) == (True, ())


def test_any_number_of_tensors_of_every_type_and_rank(tmp_path):
    spec = read_spec(toys.every_type(tmp_path / "m.onnx"))
    assert {tensor.dtype for tensor in spec.inputs} == set(TYPES)
    assert spec.batched
    assert shapes(spec.inputs)["int64"] == ("int64", ())
    assert shapes(spec.inputs)["float32"] == ("float32", (-1,))
    assert len(spec.outputs) == len(TYPES)


def test_a_fixed_first_axis_is_no_batch_axis(tmp_path):
    spec = read_spec(toys.add_sub(tmp_path / "m.onnx", batch=1))
    assert not spec.batched
    assert shapes(spec.inputs)["INPUT0"] == ("int32", (1, 16))


def test_weights_are_no_inputs(tmp_path):
    assert list(shapes(read_spec(toys.without_batch(tmp_path / "m.onnx")).inputs)) == ["table", "factor"]


def test_a_batch_axis_is_what_leaves_neighbours_alone(tmp_path):
    assert from_file(toys.add_sub(tmp_path / "rows.onnx")).spec.batched
    mixed = from_file(toys.mixing(tmp_path / "mixing.onnx")).spec
    assert not mixed.batched
    assert shapes(mixed.inputs)["x"] == ("float32", (-1, 3))


def test_golden_answers_are_onnx_runtimes(tmp_path):
    artifact = from_file(toys.add_sub(tmp_path / "simple.onnx"))
    expected = golden_answers(artifact, made_up(artifact.spec, rows=4))
    first, second = expected.inputs["INPUT0"], expected.inputs["INPUT1"]
    np.testing.assert_array_equal(expected.outputs["OUTPUT0"], first + second)
    np.testing.assert_array_equal(expected.outputs["OUTPUT1"], first - second)
    assert first.shape == (4, 16)
    assert artifact.candidate == "simple"


def test_inputs_without_a_batch_axis_have_the_graphs_own_shapes(tmp_path):
    spec = from_file(toys.without_batch(tmp_path / "m.onnx")).spec
    inputs = made_up(spec, rows=9)
    assert inputs["factor"].shape == ()
    assert inputs["table"].shape[1:] == (3,)
    seen = golden_answers(from_file(tmp_path / "m.onnx"), inputs)
    assert not seen.batched
    assert seen.inputs["factor"].shape == seen.outputs["size"].shape == (1,)  # as Triton shows what has no axis
    assert made_up(spec, rows=9)["table"].tobytes() == inputs["table"].tobytes()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            toys.text,
            r"input 'words' holds string, which model\.py cannot pass on.*Turn text into numbers before the model",
        ),
        (
            lambda path: toys.write(
                path,
                [helper.make_node("Identity", ["x"], ["y"])],
                [("x", TensorProto.BFLOAT16, ["n"])],
                [("y", TensorProto.BFLOAT16, ["n"])],
            ),
            r"holds bfloat16.*Put a Cast to one of them into the graph",
        ),
        (junk, r"is not an ONNX model"),
        (lambda path: path, r"cannot be read: No such file"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path, make, says):
    with pytest.raises(PromotionError, match=says):
        read_spec(make(tmp_path / "m.onnx"))


def test_a_map_and_a_tensor_without_a_shape_are_named(tmp_path):
    path = toys.add_sub(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.output[1].type.Clear()
    model.graph.output[1].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, path)
    with pytest.raises(PromotionError, match=r"'OUTPUT1' is a sequence, and only tensors.*zipmap"):
        read_spec(path)


def test_weights_in_other_files_are_refused_with_the_cure(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", 1.0)
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="weights")
    with pytest.raises(PromotionError, match=r"keeps 2 weights in other files.*save_as_external_data=False"):
        read_spec(path)


def test_a_model_that_refuses_made_up_inputs_can_be_given_others(tmp_path):
    picky = toys.table(tmp_path / "m.onnx", rows=0)
    says = r"does not take these inputs \(index int64\[5, 2\]\).*Give some that it takes with --golden FILE\.npz"
    with pytest.raises(PromotionError, match=says):
        from_file(picky)
    np.savez(tmp_path / "golden.npz", index=np.array([[2, 3], [3, 0]]))
    inputs = read_inputs(tmp_path / "golden.npz")
    artifact = from_file(toys.table(tmp_path / "n.onnx"), ("low", "high"), inputs)
    assert golden_answers(artifact, inputs).outputs["found"].tolist() == [[20, 30], [30, 0]]
    assert artifact.spec.labels == ("low", "high")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(PromotionError, match=r"junk\.npz holds no arrays: .*Write it with numpy\.savez"):
        read_inputs(tmp_path / "junk.npz")
