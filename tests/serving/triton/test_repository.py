import json

import pytest
from google.protobuf import text_format
from serving_toys import artifact, engine, spec
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pipeline.errors import PromotionError
from pipeline.models.spec import TensorSpec
from pipeline.serving.triton import repository
from pipeline.settings.serving import Serving


def parsed(text):
    return text_format.Parse(text, ModelConfig())


def test_config_says_what_the_spec_says():
    config = parsed(repository.config_pbtxt(spec(), Serving(max_batch_size=32, instances=3, threads=2), [4]))
    assert config.name == ""  # a candidate is renamed
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input] == [("image", 2, [1, 2, 2])]
    assert [tensor.name for tensor in config.output] == ["logits", repository.ATTESTED]
    assert config.output[0].label_filename == repository.LABELS_FILE
    assert (config.max_batch_size, config.instance_group[0].count) == (32, 3)
    assert config.parameters["threads"].string_value == "2"
    assert list(config.version_policy.specific.versions) == [4]


def batching(**settings):
    return parsed(repository.config_pbtxt(spec(), Serving(**settings), [1])).dynamic_batching


def test_limits_of_the_queue_are_model_pys_and_elsewhere_tritons():
    assert batching(queue_delay_us=250).max_queue_delay_microseconds == 250
    limits = {"max_queue_size": 100, "queue_timeout_ms": 12.5}
    assert not batching(**limits).HasField("default_queue_policy")  # it would stall Triton 2.51
    python = parsed(repository.config_pbtxt(spec(), Serving(**limits), [1])).parameters
    assert {key: python[key].string_value for key in limits} == {"max_queue_size": "100", "queue_timeout_ms": "12.5"}
    policy = batching(backend="onnxruntime", **limits).default_queue_policy
    assert policy.max_queue_size == 100
    assert (policy.default_timeout_microseconds, policy.allow_timeout_override) == (12_500, True)
    assert policy.timeout_action == policy.REJECT
    assert not batching(backend="onnxruntime").HasField("default_queue_policy")


def test_priorities_are_levels_of_which_the_last_is_everybodys():
    levels = batching(priority_levels=3)
    assert (levels.priority_levels, levels.default_priority_level) == (3, 3)
    assert batching().priority_levels == 0


@pytest.mark.parametrize("backend", ["python", "onnxruntime", "tensorrt"])
def test_every_backend_gets_the_same_interface_from_the_same_settings(backend):
    gpus = () if backend == "python" else (0, 2)
    settings = Serving(backend=backend, gpus=gpus, instances=3, threads=2, units=5, response_cache=not gpus)
    config = parsed(repository.config_pbtxt(spec(), settings, [4]))
    python = parsed(repository.config_pbtxt(spec(), Serving(), [4]))
    assert config.backend == backend
    assert list(config.input) == list(python.input)
    assert config.output[0] == python.output[0]
    assert (repository.ATTESTED in [output.name for output in config.output]) == (backend == "python")
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (3, 1 if gpus else 2, list(gpus))
    assert [(one.name, one.count) for one in group.rate_limiter.resources] == [("flyweight", 5)]
    assert getattr(group.rate_limiter.resources[0], "global")
    assert config.response_cache.enable == (not gpus)
    threads = {"python": "threads", "onnxruntime": "intra_op_thread_count"}.get(backend)
    assert threads is None or config.parameters[threads].string_value == "2"


def test_tensors_without_axes_and_of_any_length():
    odd = spec().model_copy(
        update={
            "inputs": (
                TensorSpec(name="a", dtype="int64", shape=()),
                TensorSpec(name="b", dtype="bool", shape=(-1, 2)),
            ),
            "outputs": (TensorSpec(name="c", dtype="float64", shape=()),),
            "labels": (),
        }
    )
    config = parsed(repository.config_pbtxt(odd, Serving(max_batch_size=4), [1]))
    assert [list(tensor.dims) for tensor in config.input] == [[1], [-1, 2]]
    assert config.input[0].HasField("reshape")
    assert not config.input[1].HasField("reshape")
    assert config.output[0].label_filename == ""
    assert [list(config.model_warmup[0].inputs[name].dims) for name in "ab"] == [[1], [1, 2]]
    assert repository.labels_text(odd) == ""


def test_a_model_without_a_batch_axis_is_never_batched():
    bare = TensorSpec(name="factor", dtype="float32", shape=())
    alone = spec().model_copy(update={"batched": False, "inputs": (*spec().inputs, bare)})
    config = parsed(repository.config_pbtxt(alone, Serving(max_batch_size=16), [1]))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [warmup.batch_size for warmup in config.model_warmup] == [1]
    assert list(config.output[1].dims) == [1, 32]
    assert list(config.input[1].dims) == [1]
    assert not config.input[1].HasField("reshape")  # Triton refuses it without a batch axis


def test_warm_up_can_be_left_out():
    assert len(parsed(repository.config_pbtxt(spec(), Serving(warmup=False), [1])).model_warmup) == 0


def test_warm_up_covers_one_image_and_a_full_batch():
    config = parsed(repository.config_pbtxt(spec(), Serving(max_batch_size=16), [1]))
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 16]
    assert len(parsed(repository.config_pbtxt(spec(), Serving(max_batch_size=1), [1])).model_warmup) == 1


def test_a_name_with_quotes_stays_one_name():
    odd = spec().model_copy(update={"outputs": (spec().outputs[0].model_copy(update={"name": 'a "b" { }'}),)})
    assert parsed(repository.config_pbtxt(odd, Serving(), [1])).output[0].name == 'a "b" { }'


def test_the_policy_is_changed_and_nothing_else(tmp_path):
    text = repository.config_pbtxt(spec(), Serving(), [2])
    (tmp_path / "config.pbtxt").write_text(text)
    changed = repository.with_versions(tmp_path / "config.pbtxt", [2, 1])
    assert changed == repository.config_pbtxt(spec(), Serving(), [1, 2])
    (tmp_path / "config.pbtxt").write_text(changed)
    assert repository.served_versions(tmp_path) == (1, 2)


def test_a_version_has_all_that_the_backend_needs_and_no_room_for_a_cache(tmp_path):
    repository.write_version(tmp_path / "7", artifact(tmp_path, 1.0), Serving(), 7)
    code = {"model.py", *(path.name for path in repository.BESIDE_BACKEND)}
    assert "flyweight_live.py" in code
    names = {"model.onnx", "manifest.json", "config.pbtxt", "labels.txt", "__pycache__"}
    assert {path.name for path in (tmp_path / "7").iterdir()} == names | code
    assert set(json.loads((tmp_path / "7" / "manifest.json").read_text())["backend"]) == code
    assert (tmp_path / "7" / "__pycache__").is_file()


def test_native_backends_need_no_code_of_ours(tmp_path):
    repository.write_version(tmp_path / "7", artifact(tmp_path, 1.0), Serving(backend="onnxruntime"), 7)
    assert {path.name for path in (tmp_path / "7").iterdir()} == {
        "model.onnx",
        "manifest.json",
        "config.pbtxt",
        "labels.txt",
    }


def test_tensorrt_serves_the_engine_and_remembers_the_onnx_file(tmp_path):
    one = artifact(tmp_path, 1.0)
    with pytest.raises(PromotionError, match=r"'int8' has no engine: name it in build_tensorrt\.candidates"):
        repository.write_version(tmp_path / "6", one, Serving(backend="tensorrt", gpus=(0,)), 6)
    built = engine(one, tmp_path)
    repository.write_version(tmp_path / "7", built, Serving(backend="tensorrt", gpus=(0,)), 7)
    assert (tmp_path / "7" / "model.plan").read_bytes() == b"a plan"
    assert repository.manifest_sha256(tmp_path / "7") == one.sha256
    assert not (tmp_path / "7" / "model.onnx").exists()
    (tmp_path / "model.plan").write_bytes(b"another plan")
    with pytest.raises(PromotionError, match=r"the file changed after it was exported"):
        repository.write_version(tmp_path / "8", built, Serving(backend="tensorrt", gpus=(0,)), 8)


def test_bytes_that_are_not_the_promised_ones_are_refused(tmp_path):
    bad = artifact(tmp_path, 1.0)
    bad.onnx.write_bytes(bad.onnx.read_bytes() + b"\0")
    with pytest.raises(PromotionError, match=r"was recorded with .*Run `flyweight export_onnx` again"):
        repository.write_version(tmp_path / "1", bad, Serving(), 1)


def test_other_labels_are_another_interface(tmp_path):
    one = artifact(tmp_path, 1.0)
    other = repository.Artifact(one.onnx, spec(("a", "b", "c")), one.sha256, one.candidate)
    repository.write_version(tmp_path / "1", one, Serving(), 1)
    repository.write_version(tmp_path / "2", other, Serving(), 2)
    repository.write_version(tmp_path / "3", one, Serving(instances=1), 3)
    assert not repository.same_interface(tmp_path / "1", tmp_path / "2")
    assert repository.same_interface(tmp_path / "1", tmp_path / "3")


@pytest.mark.parametrize("name", ["", "Proxy", "../proxy", "a/b", "proxy__cand", "proxy__eval_int8", "x" * 65])
def test_names_that_cannot_be_directories_of_ours_are_refused(name):
    with pytest.raises(PromotionError, match=r"serving.model is"):
        repository.check_name(name)


@pytest.mark.parametrize("version", [0, -1, 2**31, 20260821142538123456, True, "1"])
def test_versions_that_triton_would_trip_over_are_refused(version):
    with pytest.raises(PromotionError, match="cannot be a version: an integer from 1"):
        repository.check_version(version)


def test_only_plain_numbers_count_as_versions(tmp_path):
    for name in ("1", "12", "2.tmp", "3_partial", ".4", "5" * 20):
        (tmp_path / name).mkdir()
    assert set(repository.version_directories(tmp_path)) == {1, 12}


def test_a_config_that_is_none_is_named(tmp_path):
    (tmp_path / "config.pbtxt").write_text("max_batch_size: {")
    with pytest.raises(PromotionError, match=r"config\.pbtxt is not a config that Triton could read"):
        repository.served_versions(tmp_path)


def test_the_backend_and_this_package_agree_on_how_to_attest():
    source = repository.BACKEND.read_text()
    assert f'ATTEST = "{repository.ATTEST}"' in source
    assert f'ATTESTED = "{repository.ATTESTED}"' in source


def test_a_config_is_what_it_was_when_it_was_written_by_hand():
    settings = Serving(
        backend="onnxruntime", gpus=(0,), units=2, max_batch_size=8, queue_delay_us=5, max_queue_size=3, warmup=True
    )
    written = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "image" data_type: TYPE_UINT8 dims: [ 1, 2, 2 ] }
output { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
instance_group { count: 2 kind: KIND_GPU gpus: [ 0 ]
  rate_limiter { resources { name: "flyweight" global: true count: 2 } } }
dynamic_batching { max_queue_delay_microseconds: 5 default_queue_policy { max_queue_size: 3 } }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
parameters { key: "inter_op_thread_count" value { string_value: "1" } }
model_warmup { name: "batch of 1" batch_size: 1
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 1, 2, 2 ] zero_data: true } } }
model_warmup { name: "batch of 8" batch_size: 8
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 1, 2, 2 ] zero_data: true } } }
version_policy { specific { versions: [ 1, 2 ] } }
"""
    assert parsed(repository.config_pbtxt(spec(), settings, [2, 1])) == parsed(written)
