"""MLflow's Model Registry, a real one on a file, as promotion uses it."""

import pytest

from pipeline.errors import PromotionError

pytestmark = pytest.mark.integration  # a real store of MLflow


@pytest.fixture
def registry(tmp_path, monkeypatch):
    from registry_toys import registry_on_file

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with registry_on_file(tmp_path) as registry:
        yield registry


def test_a_version_comes_back_with_all_its_files_byte_by_byte(registry, tmp_path):
    from serving_toys import artifact, golden

    from pipeline.serving.promotion.pull import pull
    from pipeline.serving.triton.golden import save_golden

    one = artifact(tmp_path, 1.0)
    tags = {"sha256": one.sha256, "verdict": "PROMOTE", "candidate": "int8"}
    version = registry.register("proxy", one.onnx.parent, tags)
    save_golden(tmp_path / "golden.safetensors", golden(one))
    registry.attach("proxy", version, tmp_path / "golden.safetensors")
    pulled = pull(registry, "proxy", version, tmp_path / "pulled")
    assert pulled.artifact.onnx.read_bytes() == one.onnx.read_bytes()
    assert pulled.artifact.spec == one.spec
    assert pulled.tags == tags
    assert registry.version_with_sha("proxy", one.sha256) == version == 1


def test_aliases_are_read_and_what_is_not_there_is_said(registry, tmp_path):
    from serving_toys import artifact

    assert registry.aliases("proxy") == {}
    with pytest.raises(PromotionError, match=r"has no version 1 of proxy; it has: none"):
        registry.fetch("proxy", 1, tmp_path / "nothing")
    one = artifact(tmp_path, 1.0)
    registry.register("proxy", one.onnx.parent, {"sha256": one.sha256})
    registry.set_alias("proxy", "champion", 1)
    assert registry.aliases("proxy") == {"champion": 1}
    with pytest.raises(PromotionError, match=r"has no version 9 of proxy; it has: 1"):
        registry.fetch("proxy", 9, tmp_path / "nothing")
