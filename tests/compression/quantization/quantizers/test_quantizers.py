"""Every file of `quantizers/` keeps the contract of `types.Quantizer`."""

import math
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from pipeline import components
from pipeline.errors import ModelError
from pipeline.export import tensorrt
from pipeline.runners.onnx_runner import OnnxRunner

TARGETS = {"dynamic": ["cpu"], "bf16": ["tensorrt"]}
"""Where a quantizer has fewer than two."""
ERROR = {"fp16": 0.002, "bf16": 0.02, "int4": 0.06}
"""Mean error of the logits, as a share of the largest; 0.03 for the others, which are int8."""
BESIDE = {"mixed": {"mixed.json"}}
FORMS = [(name, target) for name in components.names("quantizers") for target in TARGETS.get(name, ["cpu", "tensorrt"])]


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def made(request, digits, source_for, tmp_path_factory):
    name, target = request.param
    out = tmp_path_factory.mktemp(name) / "model.onnx"
    source = source_for(name)
    counted = components.build("quantizers", name, {})(source, digits[0][:200], out, target)
    return SimpleNamespace(name=name, target=target, source=source, file=out, counted=counted)


def answers(made, images):
    if made.name == "bf16":  # ONNX Runtime has no kernels
        return ReferenceEvaluator(onnx.load(made.file)).run(None, {"image": images})[0]
    return OnnxRunner(made.file)({"image": images})["logits"]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_it_takes_any_batch_and_answers_nearly_as_float_does(made, digits, batch):
    images = digits[0][200 : 200 + batch]
    expected = OnnxRunner(made.source)({"image": images})["logits"]
    found = answers(made, images)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).mean() < ERROR.get(made.name, 0.03) * np.abs(expected).max()


def test_a_client_sees_the_same_input_and_output(made):
    source, found = (onnx.load(file).graph for file in (made.source, made.file))
    assert list(found.input) == list(source.input)
    assert [value.name for value in found.output] == [value.name for value in source.output]
    assert found.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert found.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_metadata_are_kept_and_say_what_it_is(made):
    source, found = (
        {entry.key: entry.value for entry in onnx.load(file).metadata_props} for file in (made.source, made.file)
    )
    assert {key: found[key] for key in source if key != "opset"} == {k: v for k, v in source.items() if k != "opset"}
    assert found["target"] == made.target
    assert found["precision"] in {"int8", "int4", "float16", "bfloat16"}


def test_it_is_smaller(made):
    assert made.file.stat().st_size < made.source.stat().st_size


def test_it_leaves_its_files_and_no_others(made):
    assert {path.name for path in made.file.parent.iterdir()} == {"model.onnx"} | BESIDE.get(made.name, set())


def test_what_it_counts_are_numbers(made):
    assert made.counted and all(isinstance(value, float) and math.isfinite(value) for value in made.counted.values())


def test_the_real_parser_takes_what_is_made_for_tensorrt(made):
    if made.target != "tensorrt" or tensorrt.missing("tensorrt_rtx", None):
        pytest.skip("not made for tensorrt, or tensorrt_rtx is not installed on this platform")
    plan = tensorrt.build("tensorrt_rtx", made.file, {"image": (1, 8, 8)}, (1, 7, 64), None)
    kind = {"fp16": "float16", "bf16": "bfloat16", "int4": "int4"}.get(made.name, "int8")
    assert plan.precisions.get(kind, 0) > 0


@pytest.mark.parametrize("name", components.names("quantizers"))
def test_images_of_another_kind_are_refused_before_anything_is_written(name, source_for, tmp_path):
    quantizer, target = components.build("quantizers", name, {}), TARGETS.get(name, ["cpu"])[0]
    for images, found in [
        (np.zeros((8, 1, 9, 8), np.uint8), r"uint8 of shape \(8, 1, 9, 8\)"),
        (np.full((8, 1, 8, 8), np.nan, np.float32), r"float32 of shape \(8, 1, 8, 8\), 512 of its values NaN"),
        (np.zeros((8, 64), np.uint8), r"uint8 of shape \(8, 64\)"),
    ]:
        with pytest.raises(ModelError, match=rf"raw images, uint8 of shape \(N, 1, 8, 8\); got {found}"):
            quantizer(source_for(name), images, tmp_path / "model.onnx", target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", components.names("quantizers"))
def test_an_unknown_target_is_refused(name, source_for, digits, tmp_path):
    with pytest.raises(ModelError, match=f"target is 'gpu': the {name} quantizer knows"):
        components.build("quantizers", name, {})(source_for(name), digits[0][:8], tmp_path / "model.onnx", "gpu")
    assert list(tmp_path.iterdir()) == []
