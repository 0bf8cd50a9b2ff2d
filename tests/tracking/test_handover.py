"""The fingerprint covers what a result depends on, and nothing else."""

import subprocess

import pytest

from pipeline.errors import FlyweightError
from pipeline.graph import STAGES
from pipeline.settings import parse
from pipeline.tracking import handover
from pipeline.tracking.handover import Input

TRAIN = STAGES["train"]


def _inputs(identity="abc"):
    return {"data": Input("data", identity, None, None)}


def _hash(overrides=None, identity="abc", code="c0", stage=TRAIN):
    return handover.fingerprint(stage, parse.load("demo", overrides), _inputs(identity), code)


def test_the_same_facts_give_the_same_fingerprint():
    assert _hash() == _hash()


@pytest.mark.parametrize(
    "changed",
    [
        {"overrides": {"train.fit.epochs": 7}},
        {"overrides": {"seed": 3}},
        {"overrides": {"distributed.nproc": 1}},
        {"identity": "abd"},
        {"code": "c1"},
        {"stage": STAGES["distill"]},
    ],
)
def test_what_the_result_depends_on_changes_it(changed):
    assert _hash(**changed) != _hash()


def test_what_the_stage_does_not_take_leaves_it_alone():
    assert _hash({"budget.accuracy_drop": 0.5}) == _hash()


def test_tree_hash_sees_names_and_bytes_but_not_times(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        (directory / "deep").mkdir(parents=True)
        (directory / "deep" / "a").write_bytes(b"x")
    assert handover.tree_hash(one) == handover.tree_hash(two)
    (two / "deep" / "a").write_bytes(b"y")
    assert handover.tree_hash(one) != handover.tree_hash(two)
    (two / "deep" / "a").write_bytes(b"x")
    (two / "deep" / "a").rename(two / "deep" / "b")
    assert handover.tree_hash(one) != handover.tree_hash(two)


def test_a_missing_input_says_how_to_give_it():
    with pytest.raises(FlyweightError, match=r"distill needs teacher: --input teacher=<run id of train"):
        handover.find_inputs(STAGES["distill"], {"data": "/"})


def test_an_unknown_input_is_refused():
    with pytest.raises(FlyweightError, match="train has no input 'techer'; it takes: data"):
        handover.find_inputs(TRAIN, {"techer": "x"})


def test_without_mlflow_the_error_says_what_to_start(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"MLflow does not answer at http://127.0.0.1:9 .*flyweight up"):
        handover.get_run("0" * 32)


def test_a_dirty_tree_has_no_version(tmp_path, monkeypatch):
    monkeypatch.delenv("FLYWEIGHT_CODE_VERSION", raising=False)
    monkeypatch.setenv("FLYWEIGHT_ROOT", str(tmp_path))
    assert handover.code_version()[0] is None  # not a git repository at all
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(tmp_path)]
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "a.py").write_text("1")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "m"], check=True)
    version, why = handover.code_version()
    assert version and why == "git"
    (tmp_path / "README").write_text("docs do not count")
    assert handover.code_version()[0] == version
    (tmp_path / "pipeline" / "a.py").write_text("2")
    assert handover.code_version() == (None, "the working tree differs from the commit")
    monkeypatch.setenv("FLYWEIGHT_CODE_VERSION", "image-1")
    assert handover.code_version()[0] == "image-1"
