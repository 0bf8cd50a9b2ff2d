"""A candidate on live requests, against a stand-in for Triton and for the champion's instances: who passes, who does not."""

import contextlib
import math
import socket
import threading
import time

import numpy as np
import pytest
from serving_toys import QUICK, artifact, golden, images

from pipeline.errors import PromotionError
from pipeline.serving.promotion import canary, history, ledger
from pipeline.serving.promotion.canary import Evaluator, Pair
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.ledger import Ledger
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.reconcile import reconcile
from pipeline.serving.promotion.relay import socket_path
from pipeline.serving.triton.backend.flyweight_messages import receive_message, send_message
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import CONFIG_FILE, Artifact
from pipeline.settings.serving import Promote

TRY = QUICK.model_copy(
    update={
        "live_test": "canary",
        "live_requests": 20,
        "live_alpha": 0.05,
        "max_error_rate": 0.1,
        "live_max_latency_ratio": 1e6,
        "live_s": 60.0,
    }
)
GOOD = Pair(None, 0.0, 0.001, 0.001)


class Copy:
    """As a copy of the champion does: hands its requests over while somebody wants them, and keeps what comes back."""

    def __init__(self, version=1):
        self.version, self.wanted, self.answers = version, [], []
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def serve(self):
        while not self.end.is_set():
            time.sleep(0.01)
            with contextlib.suppress(OSError, EOFError), socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(socket_path("proxy")))
                send_message(connection, {"version": str(self.version)}, {})
                self.wanted.append(receive_message(connection)[0])
                for number in range(10_000):
                    send_message(connection, {"id": number}, {"image": images(1, seed=number)})
                    said, tensors = receive_message(connection)
                    assert said == {"id": number}
                    self.answers.append(tensors)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()


@pytest.fixture
def promote(home, fake, registry, serving, in_process, monkeypatch):
    monkeypatch.setattr(canary, "_COPIES_SECONDS", 2.0)

    def run(what, config=TRY, settings=serving):
        return promote_artifact(settings, what, golden(what), registry, {"verdict": "PROMOTE"}, fake, config)

    return run


@pytest.fixture
def one(home, promote):
    """A champion, which serves as version 1."""
    what = artifact(home, 1.0)
    promote(what, QUICK)
    return what


def nothing_left(home, fake):
    assert set(fake.loaded()) == {"proxy"}
    assert [path.name for path in (home / "triton_repo").iterdir()] == ["proxy"]
    assert not socket_path("proxy").exists()


def entries(step):
    return [entry for entry in Ledger("proxy").entries() if entry["step"] == step]


def told():
    return {event.what: event.detail for event in history.events("proxy")}


@pytest.mark.parametrize("kind", ["canary", "shadow"])
def test_a_good_candidate_passes_and_goes_live(home, fake, one, promote, kind):
    two = artifact(home, 2.0)
    with Copy() as copy:
        done = promote(two, TRY.model_copy(update={"live_test": kind, "live_share": 0.25}))
    assert (done.version, done.previous_version) == (2, 1)
    nothing_left(home, fake)
    assert copy.wanted == [{"share": 0.25, "answers": kind == "canary", "most": 2, "patience": 1.0}]
    (ended,) = entries(ledger.LIVE_TESTED)
    assert (ended["verdict"], ended["failed"], ended["other"]) == ("passed", 0, 0.0)
    assert ended["tried"] >= 20
    assert told()[kind] == "of 0.25 of the live requests"
    assert f"as {kind}: " in told()["passed"]
    given = [answer for answer in copy.answers if answer]
    if kind == "shadow":
        assert given == []
    else:
        assert len(given) >= 20
        assert np.array_equal(given[3]["logits"], golden_logits(two, images(1, seed=3)))


def golden_logits(what, asked):
    from pipeline.runners.onnx_runner import OnnxRunner

    return OnnxRunner(what.onnx)({"image": asked})["logits"]


def turn(fake, what, fault):
    """Let the candidate be faulty from the moment on which it is tried on live requests."""
    append = Ledger.append

    def begin(self, step, **said):
        append(self, step, **said)
        if step == ledger.LIVE_TEST:
            getattr(fake, fault).add(what.sha256)

    return begin


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("failing", r"canary: \d+ failed \(\d+ INTERNAL\), allowed is a share of promote.max_error_rate = 0.1 "),
        (
            "changed",
            r"canary: \d+.\d% of the answers are another class than the champion's, allowed is promote.live_max",
        ),
        ("slow", r"canary: \d+ failed \(\d+ later than promote.live_timeout_ms\)"),
    ],
)
def test_a_bad_candidate_is_withdrawn_and_answers_nobody_wrongly(home, fake, one, promote, monkeypatch, fault, says):
    two = artifact(home, 2.0)
    monkeypatch.setattr(Ledger, "append", turn(fake, two, fault))
    with Copy() as copy, pytest.raises(PromotionError, match=says) as refused:
        promote(two, TRY.model_copy(update={"live_timeout_ms": 100.0}))
    assert "was refused, what served before serves on" in str(refused.value)
    nothing_left(home, fake)
    assert Ledger("proxy").serving_version() == 1
    assert entries(ledger.LIVE_TESTED)[0]["verdict"] == "broken"
    if fault != "changed":
        assert not any(copy.answers)  # the champion answers


def test_an_answer_that_is_not_finite_or_has_another_shape_is_a_failure(home, fake, one, promote, monkeypatch):
    two, infer = artifact(home, 2.0), fake.infer
    broken = [np.full((1, 3), np.nan, np.float32), np.zeros((1, 2), np.float32)]

    def faulty(model, inputs, version="", *, attest=False):
        answer = infer(model, inputs, version, attest=attest)
        if model == "proxy__cand" and entries(ledger.LIVE_TEST):
            answer.outputs["logits"] = broken[int(inputs["image"].sum()) % 2]
        return answer

    monkeypatch.setattr(fake, "infer", faulty)
    with Copy() as copy, pytest.raises(PromotionError, match=r"failed \(\d+ (not finite|of another shape)"):
        promote(two)
    assert not any(copy.answers)


def test_what_the_champion_cannot_answer_either_is_not_counted(home, fake, one, promote, monkeypatch):
    two, infer = artifact(home, 2.0), fake.infer

    def hard(model, inputs, version="", *, attest=False):
        tried = entries(ledger.LIVE_TEST) and not entries(ledger.LIVE_TESTED)
        if tried and inputs["image"].sum() % 2:
            raise TritonError("out of its range", "INVALID_ARGUMENT")
        return infer(model, inputs, version, attest=attest)

    monkeypatch.setattr(fake, "infer", hard)
    with Copy() as copy:
        promote(two)
    assert entries(ledger.LIVE_TESTED)[0]["failed"] == 0
    assert {} in copy.answers


def test_without_enough_requests_it_is_withdrawn_as_undecided(home, fake, one, promote):
    with (
        Copy(),
        pytest.raises(PromotionError, match=r"undecided after promote.live_s = \d s and \d+ live requests: only"),
    ):
        promote(artifact(home, 2.0), TRY.model_copy(update={"live_s": 0.5, "live_requests": 10**6}))
    nothing_left(home, fake)
    assert entries(ledger.LIVE_TESTED)[0]["verdict"] == "undecided"
    assert Ledger("proxy").serving_version() == 1


def test_a_champion_whose_instances_do_not_come_is_said(home, fake, one, promote):
    with pytest.raises(PromotionError, match="no instance of proxy version 1 hands its requests over"):
        promote(artifact(home, 2.0))
    nothing_left(home, fake)


def test_a_triton_that_goes_away_ends_it(home, fake, one, promote, monkeypatch, registry, serving):
    two = artifact(home, 2.0)
    with Copy(), monkeypatch.context() as patch:
        patch.setattr(Evaluator, "verdict", lambda self: fake.die() or "undecided")
        with pytest.raises(TritonError, match=r"Triton went away|Triton is away"):
            promote(two)
    fake.restart()
    assert set(fake.loaded()) == {"proxy"}
    report = reconcile(serving, registry, fake, QUICK)
    assert (report.version, report.needs_a_person) == (1, [])
    nothing_left(home, fake)


def test_what_a_killed_promoter_left_is_removed(home, fake, one, promote, registry, serving, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(self):
        socket_path("proxy").rename(socket_path("proxy").with_suffix(".kept"))
        raise Killed

    with Copy(), monkeypatch.context() as patch:
        patch.setattr(Evaluator, "verdict", kill)
        patch.setattr("pipeline.serving.promotion.promote.remove_models", lambda *_: [])
        with pytest.raises(Killed):
            promote(artifact(home, 2.0))
    socket_path("proxy").with_suffix(".kept").rename(socket_path("proxy"))
    assert set(fake.loaded()) == {"proxy", "proxy__cand", "proxy__cand_base"}
    assert "version 2: the last step was live_test" in history.interrupted("proxy")
    report = reconcile(serving, registry, fake, QUICK)
    assert {str(finding) for finding in report.findings} >= {
        "an interrupted promotion left its socket for live requests to proxy (repaired)",
        "an interrupted promotion left its candidate proxy__cand (repaired)",
        "an interrupted promotion left its candidate proxy__cand_base (repaired)",
    }
    nothing_left(home, fake)


def test_the_first_version_has_no_live_requests(home, promote):
    with pytest.raises(PromotionError, match=r"nothing serves as proxy yet .*: promote the first version without it"):
        promote(artifact(home, 1.0))
    assert Ledger("proxy").entries() == []


def test_a_champion_of_a_native_backend_hands_nothing_over(home, one, promote):
    config = home / "triton_repo" / "proxy" / "1" / CONFIG_FILE
    config.write_text(config.read_text().replace('backend: "python"', 'backend: "onnxruntime"'))
    change = Change("proxy", None, 1.0)
    with pytest.raises(
        PromotionError, match=r"'onnxruntime', which hands no requests over: only .* Promote without it"
    ):
        canary.check(change, 1, TRY)
    canary.check(change, 1, Promote())


def test_a_limit_of_never_is_refused_at_once(home, one, promote):
    with pytest.raises(PromotionError, match=r"promote.live_max_other is 0: no number of requests shows"):
        promote(artifact(home, 2.0), TRY.model_copy(update={"live_max_other": 0.0}))


def test_another_interface_cannot_answer_the_champions_requests(home, fake, one, promote):
    other = Artifact(one.onnx, one.spec.model_copy(update={"labels": ("a", "b", "c")}), one.sha256, one.candidate)
    with pytest.raises(PromotionError, match="takes or gives other tensors or labels than version 1"):
        promote(other)
    nothing_left(home, fake)


# The decision itself.


def decided(chance, config, failing=0.0, other=0.0, slow=0.0, most=3000):
    """Verdict on a candidate of which these shares of the requests are bad."""
    evaluator = Evaluator(config)
    for _ in range(most):
        draws = chance.random(3)
        late = config.live_max_latency_ratio * 0.001 * (1.5 if draws[2] < slow else 0.5)
        evaluator.add(Pair("INTERNAL" if draws[0] < failing else None, float(draws[1] < other), late, 0.001))
        if evaluator.verdict() != "undecided":
            break
    return evaluator.verdict()


@pytest.mark.integration  # thousands of trials
@pytest.mark.parametrize(
    "bad", [{"failing": 0.05}, *(pytest.param(bad, marks=pytest.mark.extra) for bad in ({"other": 0.1}, {"slow": 0.5}))]
)
def test_one_that_is_at_a_limit_passes_hardly_ever(bad):
    config = Promote(live_alpha=0.05, max_error_rate=0.05, live_max_other=0.1, live_requests=50)
    chance, runs = np.random.default_rng(17), 60
    passed = sum(decided(chance, config, **bad, most=250) == "passed" for _ in range(runs))
    assert passed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.integration  # thousands of trials
def test_one_that_keeps_all_limits_is_hardly_ever_withdrawn_for_breaking_one():
    config = Promote(live_alpha=0.05, max_error_rate=0.05, live_max_other=0.1, live_requests=10**6)
    chance, runs = np.random.default_rng(18), 40
    at_the_limits = {"failing": 0.05, "other": 0.1, "slow": 0.5}
    broken = sum(decided(chance, config, **at_the_limits, most=250) == "broken" for _ in range(runs))
    assert broken / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_with_the_defaults_a_good_one_passes_and_a_bad_one_does_not():
    chance = np.random.default_rng(19)
    assert [decided(chance, Promote(), other=0.03, slow=0.1) for _ in range(3)] == ["passed"] * 3
    for bad in ({"failing": 0.1}, {"other": 0.3}, {"slow": 0.9}):
        assert [decided(chance, Promote(), **bad) for _ in range(3)] == ["broken"] * 3


def test_nothing_passes_before_the_fewest_requests():
    evaluator = Evaluator(Promote(max_error_rate=1.0, live_max_other=1.0, live_requests=100))
    for _ in range(99):
        evaluator.add(GOOD)
    assert evaluator.verdict() == "undecided"
    assert "only 99 of promote.live_requests = 100 live requests came" in evaluator.reason(5.0)
    evaluator.add(GOOD)
    assert evaluator.verdict() == "passed"


def test_answers_that_are_no_classes_are_held_to_the_other_limits():
    evaluator = Evaluator(Promote(max_error_rate=0.1, live_requests=50))
    for _ in range(200):
        evaluator.add(Pair(None, None, 0.001, 0.001))
    assert evaluator.verdict() == "passed"
    assert "other" not in evaluator.figures()
