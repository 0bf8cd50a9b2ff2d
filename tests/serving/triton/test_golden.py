import numpy as np
import pytest

from pipeline.errors import PromotionError
from pipeline.serving.triton.golden import Golden, difference, load_golden, save_golden


def test_they_come_back_as_they_were_written(tmp_path):
    written = Golden({"a": np.arange(6, dtype=np.int32).reshape(3, 2)}, {"b": np.ones((3, 1), np.float32)})
    save_golden(tmp_path / "g.safetensors", written)
    read = load_golden(tmp_path / "g.safetensors")
    np.testing.assert_array_equal(read.inputs["a"], written.inputs["a"])
    np.testing.assert_array_equal(read.outputs["b"], written.outputs["b"])
    assert (read.batched, len(read)) == (True, 3)
    np.testing.assert_array_equal(read.row(1)["a"], [[2, 3]])


def test_a_model_without_a_batch_axis_has_one_request(tmp_path):
    save_golden(tmp_path / "g.safetensors", Golden({"a": np.zeros((4, 2))}, {"b": np.zeros(4)}, batched=False))
    read = load_golden(tmp_path / "g.safetensors")
    assert (read.batched, len(read), read.row(0)["a"].shape) == (False, 1, (4, 2))


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "g.safetensors").write_bytes(b"no")
    for name in ("g.safetensors", "missing"):
        with pytest.raises(PromotionError, match=rf"{name} holds no golden answers .*flyweight promote VERSION"):
            load_golden(tmp_path / name)


@pytest.mark.parametrize(
    ("served", "says"),
    [
        (np.zeros((2, 4), np.float32), r"has shape \(2, 4\), not \(2, 3\)"),
        (np.full((2, 3), np.nan, np.float32), "not finite"),
        (
            np.ones((2, 3), np.float32),
            "2 of 2 golden answers differ from the recorded ones; 'logits' by up to 1, allowed",
        ),
    ],
)
def test_difference_is_put_into_words(served, says):
    wanted = {"logits": np.zeros((2, 3), np.float32)}
    assert difference(wanted, wanted) is None
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(difference(wanted, {"logits": served}))
