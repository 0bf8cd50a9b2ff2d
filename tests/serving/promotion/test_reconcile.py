"""Each way in which ledger, disk, Triton and registry can be at odds, and what becomes of it."""

import json
import shutil

import pytest
from serving_toys import QUICK, artifact, golden, images

from pipeline.errors import PromotionError
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.ledger import REPAIRED, Ledger
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.reconcile import reconcile
from pipeline.serving.triton import disk
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import served_versions, with_versions


@pytest.fixture
def served(home, fake, registry, serving, in_process):
    """Two versions of proxy, the second serves; returns their artifacts."""
    both = []
    for factor in (1.0, 2.0):
        both.append(artifact(home, factor))
        tags = {"verdict": "PROMOTE", "candidate": "int8"}
        promote_artifact(serving, both[-1], golden(both[-1]), registry, tags, fake, QUICK)
    return both


@pytest.fixture
def look(fake, registry, serving, home):
    """Reconcile and return the findings' texts; those that a person must repair begin with '!'."""

    def run():
        report = reconcile(serving, registry, fake, QUICK)
        return report.version, [("! " if finding.advice else "") + str(finding) for finding in report.findings]

    return run


def repaired(look, fake, version=2):
    """What `look` finds at first; a second look finds nothing, and `version` answers."""
    seen, findings = look()
    assert seen == version
    assert not any(text.startswith("!") for text in findings)
    assert look() == (version, [])
    assert fake.infer("proxy", {"image": images(1)}).version == version
    return findings


def test_what_agrees_is_left_alone(served, look, fake):
    loads = len(fake.loads)
    assert look() == (2, [])
    assert len(fake.loads) == loads


def test_before_any_promotion_there_is_nothing_to_say(home, look):
    assert look() == (None, [])


def test_a_model_that_is_not_loaded_is_loaded(served, look, fake):
    fake.unload("proxy")
    (found,) = repaired(look, fake)
    assert found.startswith("proxy: version 2 is not loaded, not READY")


def test_other_bytes_in_memory_than_on_disk_are_loaded_again(served, look, fake):
    state = fake.loaded()
    state["proxy"]["2"] = served[0].sha256  # as after a link was turned: Triton says "loaded" and serves on from memory
    fake.state.write_text(json.dumps(state))
    fake.runners.clear()
    (found,) = repaired(look, fake)
    assert f"the running model attests SHA-256 {served[0].sha256}, not {served[1].sha256}" in found


def test_a_config_that_names_another_version_is_written_again(served, look, fake, home):
    config = home / "triton_repo" / "proxy" / "config.pbtxt"
    config.write_text(with_versions(config, [1]))
    fake.load("proxy", 1.0)
    found = repaired(look, fake)
    assert found[0].startswith("the config on disk names 1 and the ledger says version 2")
    assert served_versions(home / "triton_repo" / "proxy") == (2,)


def test_what_a_promotion_left_is_removed(served, look, fake, home):
    (disk.staging() / "proxy" / "3").mkdir(parents=True)
    (home / "triton_repo" / "proxy" / "7").mkdir()
    shutil.copytree(home / "triton_repo" / "proxy", home / "triton_repo" / "proxy__cand")
    found = repaired(look, fake)
    assert len(found) == 3
    assert "left files in" in found[0] and "left its candidate proxy__cand" in found[1]
    assert "version 7 of proxy was put there and never came to serve" in found[2]
    assert [path.name for path in (home / "triton_repo").iterdir()] == ["proxy"]


@pytest.mark.parametrize("what", ["missing", "half", "no golden"])
def test_damaged_files_are_fetched_from_the_registry(served, look, fake, home, what):
    place = home / "triton_repo" / "proxy" / "2"
    if what == "missing":
        shutil.rmtree(place)
    elif what == "half":
        (place / "model.onnx").write_bytes((place / "model.onnx").read_bytes()[:40])
    else:
        (place / "golden.safetensors").unlink()
    found = repaired(look, fake)
    assert "the files of proxy version 2 are damaged" in found[0]
    fake.unload("proxy")
    fake.load("proxy", 1.0)
    assert fake.loaded()["proxy"]["2"] == served[1].sha256


def test_damaged_files_that_the_registry_has_not_are_a_persons(served, look, registry, home):
    shutil.rmtree(home / "triton_repo" / "proxy" / "2")
    shutil.rmtree(registry._files(2))
    _, (first, *_) = look()
    assert first.startswith("! the files of proxy version 2 are damaged")
    assert "they cannot be fetched again" in first and "promote another version" in first


@pytest.mark.parametrize("file", ["model.py", "flyweight_live.py"])
def test_a_damaged_rollback_target_is_repaired_too_and_a_removed_one_stays_removed(served, look, fake, home, file):
    target = home / "triton_repo" / "proxy" / "1"
    (target / file).unlink()
    assert "version 1 are damaged" in repaired(look, fake)[0]
    shutil.rmtree(target)
    assert look() == (2, [])


def test_a_version_from_before_the_backend_had_more_than_model_py_is_whole(served, look, home):
    target = home / "triton_repo" / "proxy" / "1"
    for path in target.glob("flyweight_*.py"):
        path.unlink()
    manifest = json.loads((target / "manifest.json").read_text())
    del manifest["backend"]
    (target / "manifest.json").write_text(json.dumps(manifest))
    assert look() == (2, [])


def test_the_alias_follows_what_serves(served, look, fake, registry):
    registry.set_alias("proxy", "champion", 1)
    assert repaired(look, fake) == ["the registry's alias champion was on 1 and not on version 2 (repaired)"]
    assert registry.aliases("proxy") == {"champion": 2, "previous": 1}


@pytest.mark.parametrize("name", ["3.tmp", "20260821142538123456", "03", "-4", "5"])
def test_names_that_harm_triton_are_a_persons_and_nothing_is_loaded(served, look, fake, home, name):
    stray = home / "triton_repo" / "proxy" / name
    if name == "5":
        stray.symlink_to(home / "triton_repo" / "proxy" / "1")
    else:
        stray.mkdir()
    loads = len(fake.loads)
    _, (found,) = look()
    assert found.startswith(f"! {stray.parent} holds {name}")
    assert "Move it away" in found
    with pytest.raises(PromotionError, match="Move it away"):
        Change("proxy", fake, 1.0).load()
    assert len(fake.loads) == loads


def test_a_control_plane_that_is_stuck_says_restart(served, serving, registry, fake, home):
    fake.stuck["proxy__cand"] = {3: "LOADING"}
    config = QUICK.model_copy(update={"load_timeout_s": 0.1})
    report = reconcile(serving, registry, fake, config)
    (found,) = report.needs_a_person
    assert "Triton does not come to an end with proxy__cand: version 3 is LOADING" in found.what
    assert "what is loaded answers on; restart Triton (`flyweight down`, `flyweight up`)" in found.advice
    with pytest.raises(PromotionError, match="restart Triton"):
        promote_artifact(serving, served[0], golden(served[0]), registry, {}, fake, config)
    fake.stuck.clear()
    assert reconcile(serving, registry, fake, config).findings == ()


def test_a_load_that_does_not_help_says_restart(served, look, fake):
    fake.wrong.add(served[1].sha256)
    version, (found,) = look()
    assert version == 2
    assert found.startswith("! proxy: 4 of 4 golden answers differ")
    assert "after loading version 2 again: 4 of 4 golden answers differ" in found and "restart Triton" in found


def test_a_champion_that_cannot_be_repaired_can_be_replaced(served, serving, registry, fake, home):
    fake.wrong.add(served[1].sha256)
    three = artifact(home, 3.0)
    done = promote_artifact(serving, three, golden(three), registry, {"verdict": "PROMOTE"}, fake, QUICK)
    assert (done.version, done.previous_version) == (3, 2)


def test_a_server_that_is_away_is_no_finding(served, look, fake):
    fake.die()
    with pytest.raises(TritonError, match="Triton is away"):
        look()


def test_a_model_that_is_being_changed_is_left_alone(served, look):
    with disk.lock("proxy"), pytest.raises(BlockingIOError, match="another process is changing what proxy serves"):
        look()


def test_what_was_found_is_in_the_ledger(served, look, fake):
    fake.unload("proxy")
    look()
    noted = [entry for entry in Ledger("proxy").entries() if entry["step"] == REPAIRED]
    assert [(entry["what"], entry["advice"]) for entry in noted] == [("proxy: version 2 is not loaded, not READY", "")]
