import pytest
from serving_toys import artifact, golden

from pipeline.errors import PromotionError
from pipeline.serving.promotion.pull import pull
from pipeline.serving.triton.golden import save_golden


@pytest.fixture
def registered(home, registry, tmp_path):
    one = artifact(home, 1.0)

    def register(**tags):
        given = {"sha256": one.sha256, "candidate": "int8", "verdict": "PROMOTE", **tags}
        version = registry.register("proxy", one.onnx.parent, given)
        save_golden(tmp_path / "golden.safetensors", golden(one))
        registry.attach("proxy", version, tmp_path / "golden.safetensors")
        return one, version

    return register


def test_a_registered_version_comes_back_whole(home, registry, registered):
    one, version = registered()
    pulled = pull(registry, "proxy", version, home / "pulled")
    assert pulled.artifact.onnx.read_bytes() == one.onnx.read_bytes()
    assert (pulled.artifact.sha256, pulled.artifact.spec, pulled.artifact.candidate) == (one.sha256, one.spec, "int8")
    assert len(pulled.golden) == 4


def test_what_did_not_pass_the_gate_is_refused(home, registry, registered):
    _, version = registered(verdict="INFEASIBLE")
    with pytest.raises(
        PromotionError, match=r"version 1 of proxy .* 'INFEASIBLE', not 'PROMOTE': it did not pass the gate"
    ):
        pull(registry, "proxy", version, home / "pulled")


def test_bytes_that_changed_in_the_store_are_refused(home, registry, registered):
    _, version = registered()
    stored = registry._files(version) / "model.onnx"
    stored.write_bytes(stored.read_bytes() + b"\0")
    with pytest.raises(PromotionError, match=r"but was registered with .*the file in the artifact store has changed"):
        pull(registry, "proxy", version, home / "pulled")


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "golden.safetensors"])
def test_a_version_that_is_not_whole_is_refused(home, registry, registered, name):
    _, version = registered()
    (registry._files(version) / name).unlink()
    with pytest.raises(PromotionError, match=rf"has no {name}: it was not registered by a promotion"):
        pull(registry, "proxy", version, home / "pulled")


def test_an_unknown_version_is_said(home, registry):
    with pytest.raises(PromotionError, match="the registry has no version 7 of proxy"):
        pull(registry, "proxy", 7, home / "pulled")
