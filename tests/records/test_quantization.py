"""quantization.json as later stages read it."""

import json

import pytest

from pipeline.errors import ModelError
from pipeline.records.quantization import Quantization, candidate_of, load_quantization


def test_it_says_which_forms_there_are_and_which_candidate_to_serve(tmp_path):
    record = {"serve": "pruned", "proof": {"pace": "slower"}, "targets": {"cpu": {"fused": 3.0}, "tensorrt": {}}}
    (tmp_path / "quantization.json").write_text(json.dumps(record))
    found = load_quantization(tmp_path)
    assert found.serve == "pruned" and found.targets == {"cpu": {"fused": 3.0}, "tensorrt": {}}
    assert [candidate_of(target) for target in found.targets] == ["int8", "int8_tensorrt"]


@pytest.mark.parametrize(("serve", "expected"), [("pruned", "pruned"), ("int8", None), (None, None)])
def test_int8_that_is_not_to_be_served_gives_way(serve, expected):
    record = Quantization(serve=serve, targets={"cpu": {}, "tensorrt": {}})
    assert record.gives_way_to("cpu") == expected
    assert record.gives_way_to("tensorrt") is None


def test_what_is_missing_or_damaged_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"quantization\.json cannot be read .* run `flyweight quantize`"):
        load_quantization(tmp_path)
    (tmp_path / "quantization.json").write_text("{}")
    with pytest.raises(ModelError, match=r"quantization\.json is not what `quantize` writes; (?s:.*)targets"):
        load_quantization(tmp_path)
