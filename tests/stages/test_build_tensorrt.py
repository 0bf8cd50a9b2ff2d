"""Engines built for real with TensorRT-RTX on a CPU, and honest skips where nothing can build."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from pipeline import components
from pipeline.compression.quantization import fake_quant, quant_plan
from pipeline.compression.quantization.quantizers.static import Static
from pipeline.data.manifest import load_manifest
from pipeline.data.split import open_split
from pipeline.errors import ModelError, Skipped
from pipeline.export import onnx_graph, tensorrt
from pipeline.files import sha256
from pipeline.machine.gpu import Gpu
from pipeline.models import checkpoint
from pipeline.models.checkpoint import build
from pipeline.models.spec import Preprocessing, image_classifier, load_spec
from pipeline.records.candidates import Candidate, Candidates, load_candidates, save_candidates
from pipeline.records.engines import load_engine, load_engines
from pipeline.records.measures import Parity
from pipeline.runners import engine_on_gpu
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.settings.export import BuildTensorrt
from pipeline.settings.serving import Serving
from pipeline.stages import build_tensorrt as stage
from pipeline.stages.build_tensorrt import build_tensorrt

GPU = Gpu("Test GPU", "580.1", "SM89")
needs_rtx = pytest.mark.skipif(
    tensorrt.missing("tensorrt_rtx", None) is not None, reason="tensorrt_rtx is not installed"
)
NAMES = {"pruned": "any", "int8": "cpu", "int8_tensorrt": "tensorrt"}


@pytest.fixture(scope="module")
def listed(digits_data, tmp_path_factory):
    """A directory as `export_onnx` leaves it. Weights are random: what a builder makes of a graph is not in them."""
    out = tmp_path_factory.mktemp("listed")
    manifest = load_manifest(digits_data)
    preprocessing = Preprocessing(mean=manifest.mean, std=manifest.std)
    arguments = {"width": 8, "blocks": [1, 1]}
    spec = image_classifier("resnet", arguments, manifest.image_shape, manifest.labels, preprocessing)
    torch.manual_seed(4)
    graphs = {name: out / name / "model.onnx" for name in NAMES}
    for name, target in NAMES.items():
        graphs[name].parent.mkdir()
        (out / name / "model.json").write_text(spec.model_dump_json())
        if name == "pruned":
            onnx_graph.export(spec, build(spec), graphs[name])
        else:
            Static()(graphs["pruned"], open_split(digits_data, "train").slice(0, 64), graphs[name], target)
    parity = Parity(images=1, max_difference=0.0, mean_difference=0.0, changed_predictions=0)
    made = [
        Candidate(
            name=name, file=f"{name}/model.onnx", sha256=sha256(graphs[name]), size_bytes=1, parameters=1, macs=1,
            precision="float32" if name == "pruned" else "int8", target=target, source="pruned", parity=parity,
        )
        for name, target in NAMES.items()
    ]  # fmt: skip
    save_candidates(out, Candidates(candidates=tuple(made), labels=manifest.labels))
    return out


@pytest.fixture(scope="module")
def built(listed, digits_data, tmp_path_factory):
    """(what the stage wrote, its metrics), built ahead of time even where there is a GPU"""
    out = tmp_path_factory.mktemp("engines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "find_gpu", lambda: None)
        config = BuildTensorrt(builder="tensorrt_rtx")
        serving = Serving(max_batch_size=16)
        return out, build_tensorrt(config, data=digits_data, candidates=listed, serving=serving, out=out)


@needs_rtx
def test_float_and_int8_become_engines(built, listed):
    out, metrics = built
    beside = ("model.plan", "model.json", "engine.json", "layers.json")
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {"engines.json"} | {
        f"{name}/{file}" for name in ("pruned", "int8_tensorrt") for file in beside
    }
    assert metrics["pruned_int8_layers"] == 0
    assert metrics["int8_tensorrt_int8_layers"] > 0
    assert load_spec(out / "pruned") == load_spec(listed / "pruned")


@needs_rtx
def test_engine_json_says_from_what_by_what_and_for_what(built, listed):
    known = load_candidates(listed)
    engines = load_engines(built[0])
    assert engines.skipped is None and len(engines.engines) == 2
    for engine in engines.engines:
        assert engine == load_engine(built[0] / engine.file)
        assert (engine.builder, engine.gpu, engine.driver) == ("tensorrt_rtx", None, None)
        assert engine.builder_version == tensorrt.module("tensorrt_rtx").__version__
        assert engine.targets == tensorrt.RTX_TARGETS
        assert (engine.profile.min, engine.profile.opt, engine.profile.max) == (1, 8, 16)
        assert engine.onnx_sha256 == known.named(engine.candidate).sha256
        assert engine.sha256 == sha256(built[0] / engine.file)


@needs_rtx
def test_layers_json_shows_where_int8_is_used(built):
    for engine in load_engines(built[0]).engines:
        said = json.loads((built[0] / engine.candidate / "layers.json").read_text())
        assert (said["from"], len(said["layers"])) == (engine.layers_from, engine.layers) == ("network", engine.layers)
        kinds = {layer["kind"] for layer in said["layers"]}
        assert "CONVOLUTION" in kinds
        quantized = [layer for layer in said["layers"] if layer["types"] == ["INT8"]]
        assert len(quantized) == engine.precisions.get("int8", 0)
        assert bool(quantized) == ("QUANTIZE" in kinds) == (engine.candidate == "int8_tensorrt")


@needs_rtx
def test_without_a_gpu_it_says_that_nothing_was_measured(built):
    for engine in load_engines(built[0]).engines:
        assert engine.on_gpu is None
        assert "for a GPU that is not here: neither latency nor answers were measured" in engine.not_measured
    assert not [name for name in built[1] if "ms" in name or "accuracy" in name]


def test_on_a_gpu_answers_and_latency_are_measured(listed, digits_data, tmp_path, monkeypatch):
    """The stage with a stand-in for the engine: ONNX Runtime, a little off, which takes no batch beyond the profile."""

    class Stand:
        name = "stand"

        def __init__(self, file):
            assert load_engine(file).candidate == file.parent.name  # what it is stands there before it is run
            self.onnx = OnnxRunner(listed / file.parent.name / "model.onnx")

        def __call__(self, inputs):
            assert len(inputs["image"]) <= 16
            return {"logits": self.onnx(inputs)["logits"] + np.float32(0.25)}

        def close(self):
            self.onnx.close()

    layers = (tensorrt.Layer("conv", "CaskConvolution", ("Row major Int8 format",)),)
    monkeypatch.setattr(stage, "find_gpu", lambda: GPU)
    monkeypatch.setattr(tensorrt, "missing", lambda builder, gpu: None)
    monkeypatch.setattr(tensorrt, "module", lambda builder: type("library", (), {"__version__": "10.0"}))
    monkeypatch.setattr(tensorrt, "build", lambda *given: tensorrt.Plan(b"plan", layers, "engine", {"Layers": []}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engine_on_gpu, "TensorRTRunner", Stand)
    monkeypatch.setattr(engine_on_gpu, "SECONDS", 0.001)
    config = BuildTensorrt(candidates=("int8_tensorrt",))
    serving = Serving(max_batch_size=16)
    metrics = build_tensorrt(config, data=digits_data, candidates=listed, serving=serving, out=tmp_path)
    engine = load_engine(tmp_path / "int8_tensorrt" / "model.plan")
    assert load_engines(tmp_path).engines == (engine,)
    assert (engine.builder, engine.gpu, engine.targets, engine.not_measured) == ("tensorrt", GPU.name, ("SM89",), None)
    assert engine.on_gpu.accuracy == engine.on_gpu.accuracy_onnx == metrics["int8_tensorrt_accuracy"]
    assert engine.on_gpu.parity.max_difference == pytest.approx(0.25, abs=1e-5)
    assert (engine.on_gpu.parity.images, engine.on_gpu.parity.changed_predictions) == (200, 0)
    assert list(engine.on_gpu.latency) == [1, 8, 16]
    assert metrics["int8_tensorrt_batch_8_p50_ms"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: no engine has been run on one by these tests")
def test_engines_answer_on_the_gpu_as_onnx_runtime_does(listed, digits_data, tmp_path):
    serving = Serving(max_batch_size=16)
    build_tensorrt(BuildTensorrt(), data=digits_data, candidates=listed, serving=serving, out=tmp_path)
    for engine in load_engines(tmp_path).engines:
        assert (engine.layers_from, engine.not_measured) == ("engine", None)
        assert ("int8" in engine.precisions) == (engine.candidate == "int8_tensorrt")
        assert engine.on_gpu.accuracy == pytest.approx(engine.on_gpu.accuracy_onnx, abs=0.02)
        assert engine.on_gpu.parity.changed_predictions <= 4
        assert set(engine.on_gpu.latency) == {1, 8, 16}


PRUNERS = {
    "none": None,
    "channel": {"keep_macs": 0.6, "round_to": 4},
    "depth": {"drop": 1},
    "low_rank": {"keep_macs": 0.6, "round_to": 4},
    "n_m": {},
    "unstructured": {"sparsity": 0.5},
}
QUANTIZERS = {"static": "int8", "qat": "int8", "mixed": "int8", "fp16": "float16", "bf16": "bfloat16"}
"""Quantizer that has a form of convolutions for tensorrt -> the type that it brings; qat is static, ranges from training."""


def forms():
    """Every pair; `make test` builds one of them."""
    for pruner in PRUNERS:
        for quantizer in QUANTIZERS:
            daily = (pruner, quantizer) == ("channel", "static")
            seldom = [] if daily else [pytest.mark.integration, pytest.mark.extra]
            yield pytest.param(pruner, quantizer, marks=seldom, id=f"{pruner}-{quantizer}")


@pytest.fixture(scope="module")
def float_graph(request, digits_data, tmp_path_factory):
    """A float graph of the network, pruned so; its spec; images; and the ranges that training with its rounding leaves."""
    manifest, images = load_manifest(digits_data), open_split(digits_data, "train").slice(0, 64)
    preprocessing = Preprocessing(mean=manifest.mean, std=manifest.std)
    arguments = {"width": 16, "blocks": [1, 1]}
    spec = image_classifier("resnet", arguments, manifest.image_shape, manifest.labels, preprocessing)
    torch.manual_seed(4)
    network = build(spec)
    network(checkpoint.normalise(spec, torch.tensor(images)))
    if request.param != "none":
        batches = iter([(checkpoint.normalise(spec, torch.tensor(images)), torch.arange(64) % 10)] * 16)
        step = components.build("pruners", request.param, PRUNERS[request.param])(spec, network, batches)
        spec = spec.model_copy(update={"pruning": (step,)})
    spec, network = fake_quant.fold(spec, network)
    file = tmp_path_factory.mktemp(request.param) / "float.onnx"
    onnx_graph.export(spec, network, file)
    return SimpleNamespace(pruner=request.param, spec=spec, network=network, file=file, images=images)


def test_every_pruner_and_every_quantizer_for_tensorrt_is_below():
    assert sorted(PRUNERS) == sorted(["none", *components.names("pruners")])
    assert sorted(QUANTIZERS) == sorted({"qat", *components.names("quantizers")} - {"dynamic", "int4"})


@needs_rtx
@pytest.mark.parametrize(("float_graph", "quantizer"), forms(), indirect=["float_graph"])
def test_what_is_pruned_and_quantized_becomes_an_engine(float_graph, quantizer, tmp_path):
    source, name = float_graph.file, quantizer
    if quantizer == "qat":
        Static()(source, float_graph.images, tmp_path / "int8.onnx", "tensorrt")
        files, name = (source, tmp_path / "int8.onnx"), "static"
        plan = quant_plan.plan(float_graph.spec, float_graph.network, *files, float_graph.images)
        ranges = fake_quant.ranges(fake_quant.simulate(float_graph.spec, float_graph.network, plan))
        source, model = tmp_path / "trained.onnx", onnx.load(source)
        onnx_graph.annotate(model, {quant_plan.RANGES_KEY: json.dumps(ranges)})
        onnx.save(model, source)
    file = tmp_path / "model.onnx"
    components.build("quantizers", name, {})(source, float_graph.images, file, "tensorrt")
    sparse = float_graph.spec.sparse
    assert sparse is (float_graph.pruner == "n_m")
    made = tensorrt.build("tensorrt_rtx", file, {"image": (1, 8, 8)}, (1, 7, 64), None, sparse)
    assert made.precisions[QUANTIZERS[quantizer]] > 0


@needs_rtx
def test_the_cpu_form_is_refused_with_node_and_cure(listed, digits_data, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "find_gpu", lambda: None)
    config = BuildTensorrt.model_construct(builder="tensorrt_rtx", candidates=("int8",))
    with pytest.raises(
        ModelError, match=r"tensorrt_rtx refuses int8/model.onnx: node '.*' \(DequantizeLinear\)"
    ) as error:
        build_tensorrt(config, data=digits_data, candidates=listed, serving=Serving(), out=tmp_path)
    assert "build int8_tensorrt" in str(error.value)
    assert not (tmp_path / "engines.json").exists()


@needs_rtx
def test_a_changed_onnx_file_is_refused(listed, digits_data, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "find_gpu", lambda: None)
    (tmp_path / "in" / "pruned").mkdir(parents=True)
    (tmp_path / "in" / "candidates.json").write_text((listed / "candidates.json").read_text())
    (tmp_path / "in" / "pruned" / "model.onnx").write_bytes(b"other")
    config = BuildTensorrt(builder="tensorrt_rtx", candidates=("pruned",))
    with pytest.raises(ModelError, match=r"pruned/model\.onnx was changed: its SHA-256 is .*, candidates\.json says"):
        build_tensorrt(config, data=digits_data, candidates=tmp_path / "in", serving=Serving(), out=tmp_path)


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
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(stage, "find_gpu", lambda: None)
    with pytest.raises(Skipped, match=reason.replace("(", r"\(")):
        build_tensorrt(
            BuildTensorrt(builder=wanted), data=tmp_path, candidates=tmp_path, serving=Serving(), out=tmp_path
        )
    assert json.loads((tmp_path / "engines.json").read_text())["skipped"] == reason
