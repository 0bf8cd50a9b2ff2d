"""Engines built for real with TensorRT-RTX on a CPU, and honest skips where nothing can build."""

import json

import pytest

from pipeline import trt
from pipeline.candidates import load_candidates, load_engines
from pipeline.checkpoint import load_spec, sha256
from pipeline.config import BuildTensorrt, Serving
from pipeline.errors import ModelError, Skipped
from pipeline.stages.build_tensorrt import build_tensorrt, choose

GPU = trt.Gpu("Test GPU", "580.1", "SM89")
needs_rtx = pytest.mark.skipif(trt.missing("tensorrt_rtx", None) is not None, reason="tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def built(candidates, tmp_path_factory):
    """(what the stage wrote, its metrics), built ahead of time even where there is a GPU"""
    out = tmp_path_factory.mktemp("engines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt, "find_gpu", lambda: None)
        config = BuildTensorrt(builder="tensorrt_rtx")
        return out, build_tensorrt(config, candidates=candidates[0], serving=Serving(max_batch_size=16), out=out)


@needs_rtx
def test_float_and_int8_become_engines(built, candidates):
    out, metrics = built
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    names = ("pruned", "int8_tensorrt")
    assert files == {"engines.json"} | {f"{name}/{file}" for name in names for file in ("model.plan", "model.json")}
    assert metrics["pruned_int8_layers"] == 0
    assert metrics["int8_tensorrt_int8_layers"] > 0
    assert load_spec(out / "pruned") == load_spec(candidates[0] / "pruned")


@needs_rtx
def test_engines_json_says_from_what_by_what_and_for_what(built, candidates):
    engines = load_engines(built[0])
    assert (engines.builder, engines.skipped, engines.gpu) == ("tensorrt_rtx", None, None)
    assert engines.builder_version == trt.module("tensorrt_rtx").__version__
    assert engines.targets == trt.RTX_TARGETS
    assert (engines.profile.min, engines.profile.opt, engines.profile.max) == (1, 8, 16)
    assert engines.layers_from == "network"
    known = load_candidates(candidates[0])
    for engine in engines.engines:
        assert engine.onnx_sha256 == known.named(engine.candidate).sha256
        assert engine.sha256 == sha256(built[0] / engine.file)
        assert any("CONVOLUTION -> FLOAT" in layer for layer in engine.layers)


@needs_rtx
def test_the_cpu_form_is_refused_with_node_and_cure(candidates, tmp_path, monkeypatch):
    monkeypatch.setattr(trt, "find_gpu", lambda: None)
    config = BuildTensorrt.model_construct(builder="tensorrt_rtx", candidates=("int8",))
    with pytest.raises(
        ModelError, match=r"tensorrt_rtx refuses int8/model.onnx: node '.*' \(DequantizeLinear\)"
    ) as error:
        build_tensorrt(config, candidates=candidates[0], serving=Serving(), out=tmp_path)
    assert "build int8_tensorrt" in str(error.value)
    assert not (tmp_path / "engines.json").exists()


@needs_rtx
def test_a_changed_onnx_file_is_refused(candidates, tmp_path, monkeypatch):
    monkeypatch.setattr(trt, "find_gpu", lambda: None)
    (tmp_path / "in" / "pruned").mkdir(parents=True)
    (tmp_path / "in" / "candidates.json").write_text((candidates[0] / "candidates.json").read_text())
    (tmp_path / "in" / "pruned" / "model.onnx").write_bytes(b"other")
    config = BuildTensorrt(builder="tensorrt_rtx", candidates=("pruned",))
    with pytest.raises(ModelError, match=r"pruned/model\.onnx was changed: its SHA-256 is .*, candidates\.json says"):
        build_tensorrt(config, candidates=tmp_path / "in", serving=Serving(), out=tmp_path)


def test_auto_takes_tensorrt_on_a_gpu_and_rtx_without(monkeypatch):
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: object())
    assert choose("auto", GPU) == ("tensorrt", "")
    assert choose("auto", None) == ("tensorrt_rtx", "")
    assert choose("tensorrt_rtx", GPU) == ("tensorrt_rtx", "")


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("off", "build_tensorrt.builder is 'off'"),
        (
            "tensorrt",
            "build_tensorrt.builder is 'tensorrt': tensorrt: the Python package tensorrt-cu13 is not installed",
        ),
        (
            "auto",
            "build_tensorrt.builder is 'auto': tensorrt: the Python package tensorrt-cu13 is not installed; "
            "tensorrt_rtx: the Python package tensorrt-rtx-cu13-bindings is not installed",
        ),
    ],
)
def test_where_nothing_can_build_the_reason_is_kept_and_raised(wanted, reason, monkeypatch, tmp_path):
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(trt, "find_gpu", lambda: None)
    with pytest.raises(Skipped, match=reason.replace("(", r"\(")):
        build_tensorrt(BuildTensorrt(builder=wanted), candidates=tmp_path, serving=Serving(), out=tmp_path)
    assert json.loads((tmp_path / "engines.json").read_text())["skipped"] == reason


def test_tensorrt_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: object())
    assert choose("tensorrt", None) == (
        None,
        "build_tensorrt.builder is 'tensorrt': tensorrt: there is no GPU to time kernels on",
    )
