import onnx_toys as toys
import pytest
from serving_toys import SHAPE, artifact, engine, spec, write_onnx

from pipeline.errors import PromotionError, SettingsError
from pipeline.files import sha256
from pipeline.models.spec import TensorSpec
from pipeline.records.engines import ENGINE_FILE
from pipeline.serving.triton.artifact import from_file
from pipeline.serving.triton.lint import lint, problems
from pipeline.serving.triton.repository import Artifact
from pipeline.settings import parse
from pipeline.settings.serving import Serving


def with_spec(tmp_path, **changed):
    path = write_onnx(tmp_path / "m.onnx", 1.0)
    return Artifact(path, spec().model_copy(update=changed), sha256(path), "int8")


def tensor(name, dtype="float32", shape=(3,)):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def test_what_fits_is_let_through(tmp_path):
    makers = (toys.add_sub, toys.every_type, toys.without_batch, toys.mixing)
    fitting = [from_file(make(tmp_path / f"{make.__name__}.onnx")) for make in makers]
    for one in (artifact(tmp_path, 1.0), *fitting):
        assert problems(one, Serving()) == []
        lint(one, Serving())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"outputs": (tensor("scores"),)},
            r"its spec has outputs \['scores'\], which m\.onnx has not; it has \['logits'\]",
        ),
        (
            {"inputs": (tensor("pixels", "uint8", SHAPE),)},
            r"m\.onnx takes inputs \['image'\], which its spec does not name",
        ),
        ({"inputs": (tensor("image", "float32", SHAPE),)}, r"'image' is float32 in its spec and uint8 in the graph"),
        ({"outputs": (tensor("logits", shape=(4,)),)}, r"'logits' has shape \[-1, 4\] in its spec and \[-1, 3\]"),
        ({"outputs": (tensor("logits", shape=(3, 1)),)}, r"\[-1, 3, 1\] in its spec"),
        ({"labels": ("one", "two")}, r"it has 2 labels, but 'logits' has shape \[3\]"),
        ({"outputs": (tensor("logits"), tensor("logits"))}, r"two of its tensors are called 'logits'"),
        ({"outputs": (tensor("model_sha256"),)}, r"called 'model_sha256', as the output that says what serves"),
    ],
)
def test_each_disagreement_between_spec_and_graph_is_named(tmp_path, changed, says):
    with pytest.raises(PromotionError, match=says):
        lint(with_spec(tmp_path, **changed), Serving())


def test_bare_numbers_without_a_batch_need_our_own_backend(tmp_path):
    bare = from_file(toys.without_batch(tmp_path / "m.onnx"))
    with pytest.raises(PromotionError, match=r"'factor', 'size' has no axis .*set serving\.backend to 'python'"):
        lint(bare, Serving(backend="onnxruntime"))
    assert problems(from_file(toys.every_type(tmp_path / "n.onnx")), Serving(backend="onnxruntime")) == []


def test_a_fixed_batch_axis_cannot_be_batched(tmp_path):
    path = toys.add_sub(tmp_path / "m.onnx", batch=1)
    batched = from_file(toys.add_sub(tmp_path / "free.onnx")).spec
    with pytest.raises(PromotionError, match=r"the first axis of 'INPUT0' is fixed at 1.*dynamic batch axis"):
        lint(Artifact(path, batched, sha256(path), "m"), Serving())


def test_all_problems_are_told_at_once(tmp_path):
    broken = with_spec(tmp_path, labels=("one",), outputs=(tensor("scores"),))
    with pytest.raises(PromotionError) as caught:
        lint(broken, Serving(gpus=(0,)))
    assert len(str(caught.value).splitlines()) == 4
    assert "'int8' cannot be served as it is configured" in str(caught.value)


def test_settings_that_contradict_each_other_are_named(tmp_path):
    one = artifact(tmp_path, 1.0)
    with pytest.raises(PromotionError, match=r"serving\.backend 'python' answers on the CPU: take 'onnxruntime'"):
        lint(one, Serving(gpus=(0,)))
    with pytest.raises(PromotionError, match=r"serving\.gpus is empty: name the GPUs"):
        lint(one, Serving(backend="tensorrt"))
    with pytest.raises(PromotionError, match="an answer from memory cannot say which bytes gave it"):
        lint(one, Serving(response_cache=True))
    with pytest.raises(PromotionError, match="Triton caches answers from the CPU alone"):
        lint(one, Serving(response_cache=True, backend="onnxruntime", gpus=(1,)))
    lint(one, Serving(response_cache=True, backend="onnxruntime"))
    with pytest.raises(SettingsError, match=r"serving\.gpus is empty: name the GPUs"):
        parse.parse({"serving": {"backend": "tensorrt"}})


def test_an_engine_must_take_the_batches_that_triton_forms(tmp_path):
    one, settings = artifact(tmp_path, 1.0), Serving(backend="tensorrt", gpus=(0,))
    lint(engine(one, tmp_path), settings)
    with pytest.raises(
        PromotionError, match=r"max_batch_size is 32, but its engine takes batches of 1 to 64: set it to 64"
    ):
        lint(engine(one, tmp_path), settings.model_copy(update={"max_batch_size": 32}))
    with pytest.raises(PromotionError, match=r"built by tensorrt_rtx, which Triton cannot load"):
        lint(engine(one, tmp_path, builder="tensorrt_rtx"), settings)
    with pytest.raises(PromotionError, match=r"built from an ONNX file with SHA-256 0, not"):
        lint(engine(one, tmp_path, onnx_sha256="0"), settings)
    with pytest.raises(PromotionError, match=r"there is no engine: name the candidate in build_tensorrt\.candidates"):
        lint(one, settings)
    (tmp_path / ENGINE_FILE).unlink()
    with pytest.raises(PromotionError, match=r"engine\.json cannot be read"):
        lint(Artifact(one.onnx, one.spec, one.sha256, "int8", tmp_path / "model.plan"), settings)
