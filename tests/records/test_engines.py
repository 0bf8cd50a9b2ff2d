"""engines.json and engine.json: written, read back, and refused."""

import pytest

from pipeline.errors import ModelError
from pipeline.records.engines import Engine, Engines, Profile, load_engine, load_engines, save_engine, save_engines


def test_what_is_saved_is_loaded(tmp_path):
    engine = Engine(
        candidate="pruned", file="pruned/model.plan", sha256="ab", size_bytes=3, onnx_sha256="cd", builder="tensorrt_rtx",
        builder_version="1.2", gpu=None, driver=None, targets=("SM89",), profile=Profile(min=1, opt=4, max=8),
        build_seconds=0.5, layers_from="network", layers=2, precisions={"int8": 1}, not_measured="no GPU here",
    )  # fmt: skip
    (tmp_path / "pruned").mkdir()
    assert save_engine(tmp_path, engine) == tmp_path / "pruned" / "engine.json"
    assert load_engine(tmp_path / "pruned" / "model.plan") == engine
    for engines in (Engines(skipped="no builder"), Engines(engines=(engine,))):
        save_engines(tmp_path, engines)
        assert load_engines(tmp_path) == engines


def test_a_directory_without_them_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"engines\.json cannot be read .* run `flyweight build_tensorrt`"):
        load_engines(tmp_path)
    with pytest.raises(ModelError, match=r"engine\.json cannot be read .* run `flyweight build_tensorrt`"):
        load_engine(tmp_path / "model.plan")
