"""The commands around the protocol: what they say and how they end; tests/serving holds what they do."""

import json
import sys

import pytest
from click.testing import CliRunner
from serving_toys import FakeTriton, Registry, artifact, golden

from pipeline.cli import main
from pipeline.errors import FlyweightError, PromotionError
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.promotion import preflight
from pipeline.serving.promotion.ledger import Ledger
from pipeline.serving.triton import client, disk
from pipeline.serving.triton.golden import save_golden

QUICK = ("--set", "promote.observe_s=0.0", "--set", "promote.probes=4", "--set", "promote.max_p99_ratio=1000000.0")


class Closing(FakeTriton):
    """As a client, it can be a context."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def stand(tmp_path, monkeypatch):
    """A registry, a stand-in for Triton, and a function that puts artifacts into the registry."""
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(tmp_path / "triton_repo"))
    (tmp_path / "triton_repo").mkdir()
    registry, fake = Registry(tmp_path / "registry.json"), Closing(tmp_path / "triton_repo", tmp_path / "loaded.json")
    monkeypatch.setattr(client, "Client", lambda: fake)
    monkeypatch.setattr("pipeline.tracking.registry.model_registry", lambda: registry)
    monkeypatch.setattr(preflight, "answers", lambda onnx, inputs, threads, timeout: OnnxRunner(onnx, threads)(inputs))

    def register(factor):
        what = artifact(tmp_path, factor)
        version = registry.register(
            "proxy", what.onnx.parent, {"sha256": what.sha256, "verdict": "PROMOTE", "candidate": "int8"}
        )
        save_golden(tmp_path / "golden.safetensors", golden(what))
        registry.attach("proxy", version, tmp_path / "golden.safetensors")
        return what

    register.registry, register.fake = registry, fake
    return register


def run(*arguments):
    """(exit code or the error that `run` turns into one, what was printed)"""
    done = CliRunner().invoke(main.main, arguments)
    return done.exception or done.exit_code, done.output


def test_a_registered_version_goes_live_and_back_and_the_history_tells_it(stand):
    one, two = stand(1.0), stand(2.0)
    code, said = run("promote", "1", *QUICK)
    assert (code, said.splitlines()[-1]) == (0, f"proxy serves version 1 (replaced version none), SHA-256 {one.sha256}")
    code, said = run("promote", "2", *QUICK)
    assert (code, said.splitlines()[-1]) == (0, f"proxy serves version 2 (replaced version 1), SHA-256 {two.sha256}")
    assert "(served already)" in run("promote", "2", *QUICK)[1]
    assert stand.registry.aliases("proxy") == {"champion": 2, "previous": 1}
    assert run("rollback")[1].splitlines()[-1] == "proxy serves version 1 again"
    assert stand.registry.aliases("proxy")["champion"] == 1
    code, said = run("history")
    assert code == 0
    assert [line.split()[2:4] for line in said.splitlines()] == [
        *([version, what] for version in "12" for what in ("live", "observed", "champion")),
        ["1", "rolled"],
    ]
    assert json.loads(run("history", "--json")[1].splitlines()[-1])["detail"] == "from version 2"


def test_a_rollback_is_done_where_the_registry_cannot_be_told(stand, monkeypatch):
    stand(1.0), stand(2.0)
    run("promote", "1", *QUICK)
    run("promote", "2", *QUICK)

    def away(model, alias, version):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(stand.registry, "set_alias", away)
    code, said = run("rollback")
    assert code == 0
    assert said.splitlines()[-2:] == [
        "proxy serves version 1 again",
        "the registry's alias was not moved (nobody answers): `flyweight reconcile` does it",
    ]


def test_promote_with_a_version_takes_nothing_of_the_stage(stand):
    stand(1.0)
    error, _ = run("promote", "1", "--input", "candidates=x", "--force")
    assert isinstance(error, FlyweightError)
    assert str(error) == "promote takes the registered version here: --input, --force is for the stage alone"


def test_without_a_version_it_is_still_the_stage(stand):
    error, _ = run("promote")
    assert "promote needs candidates, evaluation" in str(error)


def test_reconcile_says_what_it_did_and_what_a_person_must_do(stand, tmp_path):
    assert run("reconcile")[1].splitlines()[-1] == "nothing is served as proxy"
    stand(1.0)
    run("promote", "1", *QUICK)
    assert run("reconcile", *QUICK)[1].splitlines() == ["proxy serves version 1"]
    stand.fake.unload("proxy")
    code, said = run("reconcile", *QUICK)
    assert code == 0
    assert said.splitlines() == ["- proxy: version 1 is not loaded, not READY (repaired)", "proxy serves version 1"]
    (tmp_path / "triton_repo" / "proxy" / "2.tmp").mkdir()
    error, said = run("reconcile", *QUICK)
    assert isinstance(error, FlyweightError) and "Move it away" in str(error)
    with disk.lock("proxy"):
        assert "is being changed right now" in run("reconcile", *QUICK)[1]


def test_gc_says_what_it_removed(stand):
    for factor in (1.0, 2.0, 3.0):
        stand(factor)
    for version in "123":
        run("promote", version, *QUICK)
    code, said = run("gc")
    assert code == 0
    assert said == "removed version 1 of proxy (0.0 MB); the registry still has it\n"
    assert run("gc")[1] == "every version of proxy on disk is needed\n"


def test_an_unfinished_change_is_in_the_history(stand):
    Ledger("proxy").append("begin", version=1, sha256="0" * 64, previous=None)
    assert run("history")[1] == "not at its end: version 1: the last step was begin; `flyweight reconcile` ends it\n"


def test_a_server_that_is_away_may_come_back(stand):
    stand(1.0)
    stand.fake.dead = True
    error, _ = run("promote", "1", *QUICK)
    assert isinstance(error, ConnectionError)  # exit code 1: another try may pass
    assert "Triton is away" in str(error)


def test_an_unknown_version_is_named(stand):
    error, _ = run("promote", "5")
    assert isinstance(error, PromotionError)
    assert "has no version 5 of proxy" in str(error)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), ("none", 0.05, 600.0, 200)),
        (("--canary", "5%"), ("canary", 0.05, 600.0, 200)),
        (("--canary", "0.25", "--seconds", "30", "--requests", "7"), ("canary", 0.25, 30.0, 7)),
        (("--shadow",), ("shadow", 0.05, 600.0, 200)),
        (("--canary", "100%", "--shadow"), ("shadow", 1.0, 600.0, 200)),
    ],
)
def test_a_canary_or_a_shadow_is_asked_for_by_options(stand, monkeypatch, options, wanted):
    asked = []
    monkeypatch.setattr(
        "pipeline.serving.promotion.promote.promote_artifact",
        lambda *arguments: asked.append(arguments[6]) or sys.exit(0),
    )
    stand(1.0)
    run("promote", "1", *options)
    (config,) = asked
    assert (config.live_test, config.live_share, config.live_s, config.live_requests) == wanted


@pytest.mark.parametrize("share", ["0", "150%", "x", "-5%"])
def test_a_share_that_is_none_is_refused(stand, share):
    assert (
        f"{share!r} is no share: give one above 0 and up to 1, such as 5% or 0.05"
        in run("promote", "1", f"--canary={share}")[1]
    )


def test_options_of_a_live_test_need_one(stand):
    error, _ = run("promote", "1", "--seconds", "5")
    assert str(error) == "--seconds is for a test on live requests: add --canary SHARE or --shadow"


def test_a_live_test_of_the_first_version_is_refused_with_what_to_do(stand):
    stand(1.0)
    error, _ = run("promote", "1", "--shadow", *QUICK)
    assert isinstance(error, PromotionError)
    assert "promote the first version without it" in str(error)
