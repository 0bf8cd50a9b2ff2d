"""The protocol's logic against a stand-in for Triton; test_promotion_triton.py shows the same on the real one."""

import errno
import os
import shutil

import pytest
from serving_toys import QUICK, artifact, golden, images

from pipeline.errors import PromotionError
from pipeline.serving.promotion import ledger
from pipeline.serving.promotion.ledger import STEPS, Ledger
from pipeline.serving.promotion.promote import _commit, _go_live, promote_artifact
from pipeline.serving.promotion.reconcile import reconcile
from pipeline.serving.promotion.rollback import rollback
from pipeline.serving.triton import disk
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import Artifact, served_versions, version_directories
from pipeline.settings.serving import Promote, Serving


@pytest.fixture
def promote(home, fake, registry, serving, in_process):
    def run(what, settings=serving, demanded=None, config=QUICK, version=None):
        tags = {"verdict": "PROMOTE", "candidate": what.candidate}
        return promote_artifact(settings, what, demanded or golden(what), registry, tags, fake, config, version)

    return run


def answers(fake, model="proxy"):
    """(version, hash) that unpinned requests get."""
    answer = fake.infer(model, {"image": images(2)}, attest=True)
    return answer.version, answer.outputs["model_sha256"][0].tobytes().hex()


def consistent(home, fake, registry):
    """Disk, server, ledger and registry agree, and nothing is left over. Returns the version that serves."""
    directory = home / "triton_repo" / "proxy"
    version = Ledger("proxy").serving()["version"]
    assert max(served_versions(directory)) == version == answers(fake)[0] == registry.aliases("proxy")["champion"]
    assert set(fake.loaded()) == {"proxy"}
    assert [path.name for path in (home / "triton_repo").iterdir()] == ["proxy"]
    assert set(version_directories(directory)) <= Ledger("proxy").has_served()
    return version


def steps():
    return [entry["step"] for entry in Ledger("proxy").entries()]


def test_first_and_second_promotion(home, fake, registry, promote):
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    first = promote(one)
    assert (first.version, first.previous_version, first.reused) == (1, None, False)
    assert answers(fake) == (1, one.sha256)
    second = promote(two)
    assert (second.version, second.previous_version) == (2, 1)
    assert answers(fake) == (2, two.sha256)
    assert served_versions(home / "triton_repo" / "proxy") == (1, 2)  # the previous version stays warm
    assert registry.aliases("proxy") == {"champion": 2, "previous": 1}
    assert consistent(home, fake, registry) == 2


def test_the_ledger_tells_each_step_in_order(home, promote):
    promote(artifact(home, 1.0))
    assert steps() == [step for step in STEPS if step != ledger.POLICY_WRITTEN]
    promote(artifact(home, 2.0))
    assert steps()[len(STEPS) - 1 :] == list(STEPS)


def test_what_serves_already_is_left_alone(home, fake, registry, promote):
    one = artifact(home, 1.0)
    promote(one)
    before = (home / "triton_repo" / "proxy" / "config.pbtxt").stat().st_mtime_ns
    again = promote(one)
    assert (again.version, again.reused) == (1, True)
    assert registry.versions == 1
    assert (home / "triton_repo" / "proxy" / "config.pbtxt").stat().st_mtime_ns == before


def test_other_settings_are_another_version_of_the_same_bytes(home, fake, registry, promote):
    one = artifact(home, 1.0)
    promote(one)
    again = promote(one, Serving(model="proxy", max_batch_size=4, instances=1))
    assert (again.version, again.reused) == (2, False)
    assert consistent(home, fake, registry) == 2


def test_another_interface_serves_alone_and_can_be_left_again(home, fake, registry, promote):
    one = artifact(home, 1.0)
    other = Artifact(one.onnx, one.spec.model_copy(update={"labels": ("a", "b", "c")}), one.sha256, one.candidate)
    promote(one)
    promote(other)
    directory = home / "triton_repo" / "proxy"
    assert served_versions(directory) == (2,)
    assert (directory / "labels.txt").read_text() == "a\nb\nc\n"
    assert rollback("proxy", fake) == 1
    assert (directory / "labels.txt").read_text() == "none\nsome\nall\n"


def test_an_older_version_can_be_asked_for_by_number_and_left_again(home, fake, registry, promote):
    one, two, three = (artifact(home, factor) for factor in (1.0, 2.0, 3.0))
    for what in (one, two, three):
        promote(what)
    done = promote(one, version=1)
    assert (done.version, done.previous_version, done.reused) == (1, 3, False)
    assert served_versions(home / "triton_repo" / "proxy") == (1,)  # the highest that is loaded answers
    assert answers(fake) == (1, one.sha256)
    assert consistent(home, fake, registry) == 1
    assert registry.aliases("proxy") == {"champion": 1, "previous": 3}
    assert rollback("proxy", fake) == 3
    assert promote(two, version=2).previous_version == 3  # its files were there and still named in a config
    assert answers(fake) == (2, two.sha256)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("broken", "the candidate cannot be served: load failed"),
        ("wrong", "20 of 20 golden answers differ from the recorded ones; 'logits' by up to"),
        ("failing", r"6 of 6 probes failed \(6 INTERNAL\), allowed is a share of 0.01"),
        ("slow", r"too slow: 6 of 6 probes took longer than the 100 ms allowed for the p99"),
        ("changed", r"the predictions have drifted: 100% of 20 golden inputs' predictions moved to other classes"),
    ],
)
def test_a_bad_candidate_is_refused_and_the_champion_serves_on(home, fake, registry, promote, fault, says):
    one, bad = artifact(home, 1.0), artifact(home, 2.0)
    demanded = golden(bad, 20)
    config = Promote(
        load_timeout_s=5.0, observe_s=0.0, probes=20 if fault == "changed" else 6, max_p99_ms=100.0, max_p99_ratio=1e6
    )
    settings = Serving(model="proxy", max_batch_size=32, instances=1)
    promote(one, settings)
    getattr(fake, fault).add(bad.sha256)
    with pytest.raises(PromotionError, match=f"proxy version 2 was refused, what served before serves on: {says}"):
        promote(bad, settings, demanded, config)
    assert consistent(home, fake, registry) == 1
    getattr(fake, fault).clear()
    assert promote(bad, settings, demanded, config).version == 2  # the registered version is used, not a third
    assert consistent(home, fake, registry) == 2


def test_an_absolute_limit_holds_for_a_first_candidate_too(home, fake, promote):
    bad = artifact(home, 1.0)
    fake.slow.add(bad.sha256)
    config = QUICK.model_copy(update={"max_p99_ms": 100.0, "probes": 5})
    with pytest.raises(PromotionError, match=r"5 of 5 probes took longer than the 100 ms allowed"):
        promote(bad, config=config)
    assert promote(bad, config=config.model_copy(update={"max_p99_ms": None})).version == 1


def test_a_first_candidate_that_is_refused_leaves_nothing(home, fake, registry, promote):
    bad = artifact(home, 1.0)
    fake.wrong.add(bad.sha256)
    with pytest.raises(PromotionError, match=r"4 of 4 golden answers differ .* by up to .*, allowed is 0.001"):
        promote(bad)
    assert list((home / "triton_repo").iterdir()) == []


def test_answers_that_are_not_the_recorded_ones_are_refused_before_triton_sees_the_file(home, fake, promote):
    one, other = artifact(home, 1.0), artifact(home, 7.0)
    with pytest.raises(PromotionError, match=r"refused, .*: preflight: 4 of 4 golden answers differ"):
        promote(other, demanded=golden(one))
    assert fake.loads == []
    assert not (disk.staging() / "proxy").exists()


def test_bytes_that_changed_are_refused_before_triton_sees_them(home, fake, promote):
    one = artifact(home, 1.0)
    demanded = golden(one)
    one.onnx.write_bytes(one.onnx.read_bytes()[:-20])
    with pytest.raises(PromotionError, match=r"was recorded with .*: the file changed after it was exported"):
        promote(one, demanded=demanded)
    assert fake.loads == []


def test_a_version_that_turns_bad_when_it_goes_live_is_taken_back(home, fake, registry, promote, monkeypatch):
    one, bad = artifact(home, 1.0), artifact(home, 2.0)
    promote(one)
    monkeypatch.setattr(
        "pipeline.serving.promotion.promote._commit", lambda *a: (_commit(*a), fake.wrong.add(bad.sha256))
    )
    with pytest.raises(PromotionError, match="version 2 was refused"):
        promote(bad)
    assert consistent(home, fake, registry) == 1


@pytest.mark.parametrize(
    ("fault", "says"), [("failing", "requests failed"), ("slow", "too slow"), ("changed", "have drifted")]
)
def test_a_version_that_turns_bad_while_it_is_observed_is_taken_back(
    home, fake, registry, promote, monkeypatch, fault, says
):
    one, bad = artifact(home, 1.0), artifact(home, 2.0)
    settings = Serving(model="proxy", max_batch_size=32, instances=1)
    config = Promote(
        load_timeout_s=5.0, observe_s=20.0, probes=20, max_p99_ms=100.0, max_p99_ratio=1e6, observe_requests=200
    )
    promote(one, settings, golden(one, 20), QUICK)
    monkeypatch.setattr(
        "pipeline.serving.promotion.promote._go_live", lambda *a: (_go_live(*a), getattr(fake, fault).add(bad.sha256))
    )
    with pytest.raises(
        PromotionError, match=f"version 2 went live and was taken back .*, version 1 serves again: .*{says}"
    ):
        promote(bad, settings, golden(bad, 20), config)
    assert consistent(home, fake, registry) == 1
    assert steps()[-2:] == [ledger.ROLLED_BACK, ledger.REVERTED]
    getattr(fake, fault).clear()
    assert promote(bad, settings, golden(bad, 20), QUICK).version == 2  # its files were still there


def test_a_first_version_that_turns_bad_while_it_is_observed_is_withdrawn(home, fake, promote, monkeypatch):
    bad = artifact(home, 1.0)
    monkeypatch.setattr(
        "pipeline.serving.promotion.promote._go_live", lambda *a: (_go_live(*a), fake.failing.add(bad.sha256))
    )
    with pytest.raises(PromotionError, match=r"was withdrawn while it was observed: .*: nothing serves"):
        promote(bad, config=Promote(observe_s=5.0, probes=4))
    assert list((home / "triton_repo").iterdir()) == []
    assert fake.loaded() == {}
    fake.failing.clear()
    assert promote(bad).version == 1


CALLS = [step for step in STEPS if step != ledger.POLICY_WRITTEN]


EACH_STEP = [
    step if step in {STEPS[0], STEPS[len(STEPS) // 2], STEPS[-1]} else pytest.param(step, marks=pytest.mark.extra)
    for step in STEPS
]
FIRSTS = [pytest.param(True, step, marks=pytest.mark.extra) for step in CALLS]


@pytest.mark.integration  # of many processes: half a minute
@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.extra), "after"])
@pytest.mark.parametrize(("first", "kill_at"), [*FIRSTS, *((False, step) for step in STEPS)])
@pytest.mark.parametrize("then", [pytest.param("promote", marks=pytest.mark.extra), "reconcile"])
def test_killed_at_any_step_the_next_one_ends_right(
    home, fake, registry, serving, promote, first, kill_at, moment, then
):
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    if not first:
        promote(one)
    assert killed_at(kill_at, moment, lambda: promote(two)) == 9
    if not first:
        assert answers(fake)[1] in {one.sha256, two.sha256}  # somebody answers all the time
    if then == "promote":
        done = promote(two)
        assert answers(fake) == (done.version, two.sha256)
    else:
        report = reconcile(serving, registry, fake, QUICK)
        assert report.needs_a_person == []
        assert reconcile(serving, registry, fake, QUICK).findings == ()  # nothing was left to do
        if report.version is None:
            assert first and list((home / "triton_repo").iterdir()) == [] and fake.loaded() == {}
            return
    version = consistent(home, fake, registry)
    if version > 1:
        assert rollback("proxy", fake) == 1
        assert answers(fake)[1] == one.sha256


@pytest.mark.parametrize("kill_at", [ledger.ROLLED_BACK, ledger.REVERTED])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_rollback_is_done_or_was_never_decided(home, fake, registry, serving, promote, kill_at, moment):
    promote(artifact(home, 1.0))
    promote(artifact(home, 2.0))
    assert killed_at(kill_at, moment, lambda: rollback("proxy", fake)) == 9
    assert reconcile(serving, registry, fake, QUICK).needs_a_person == []
    assert consistent(home, fake, registry) == (2 if (kill_at, moment) == (ledger.ROLLED_BACK, "before") else 1)


def killed_at(step, moment, work):
    """Run `work` in a process that dies as by kill -9 right before or after the ledger's line `step`; its exit code."""
    append = Ledger.append

    def fatal(self, name, **what):
        if name == step and moment == "before":
            os._exit(9)  # no handler runs
        append(self, name, **what)
        if name == step:
            os._exit(9)

    child = os.fork()
    if child == 0:
        Ledger.append = fatal
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kill_at", EACH_STEP)
def test_triton_killed_at_any_step_one_of_both_serves_after_a_restart(
    home, fake, registry, serving, promote, monkeypatch, kill_at
):
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    promote(one)
    append = Ledger.append

    def deadly(self, step, **what):
        append(self, step, **what)
        if step == kill_at:
            fake.die()

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", deadly)
        if kill_at in {ledger.OBSERVED, ledger.DONE}:  # nothing is asked of Triton afterwards
            promote(two)
        else:
            with pytest.raises(TritonError, match="Triton is away"):
                promote(two)
    fake.restart()
    assert answers(fake)[1] in {one.sha256, two.sha256}
    report = reconcile(serving, registry, fake, QUICK)
    assert report.needs_a_person == []
    assert consistent(home, fake, registry) == report.version
    assert promote(two).version == 2
    assert consistent(home, fake, registry) == 2


def test_a_promotion_goes_on_where_the_observation_was_interrupted(home, fake, registry, promote):
    two = artifact(home, 2.0)
    promote(artifact(home, 1.0))
    killed_at(ledger.OBSERVED, "before", lambda: promote(two))
    assert registry.aliases("proxy")["champion"] == 1
    fake.failing.add(two.sha256)
    with pytest.raises(PromotionError, match="version 2 went live and was taken back while it was observed"):
        promote(two, config=Promote(observe_s=5.0, probes=10))
    assert consistent(home, fake, registry) == 1


def test_numbers_that_fall_are_refused(home, fake, registry, promote):
    promote(artifact(home, 1.0))
    promote(artifact(home, 2.0))
    registry.path.unlink()
    with pytest.raises(PromotionError, match=r"numbers must rise. Was the registry emptied"):
        promote(artifact(home, 3.0))


def test_a_model_that_someone_else_put_there_is_not_touched(home, promote):
    theirs = home / "triton_repo" / "proxy" / "3"
    theirs.mkdir(parents=True)
    for _ in range(2):  # that it was found is in the ledger, which makes it no more ours
        with pytest.raises(PromotionError, match="was not put there by a promotion"):
            promote(artifact(home, 1.0))
        assert theirs.is_dir()


def test_a_full_disk_is_said_and_the_champion_serves_on(home, fake, registry, promote, monkeypatch):
    """The copy raises what a full disk does: a file system of a test's own cannot be had without root."""
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    promote(one)
    copy = shutil.copyfile

    def full(source, target, **options):
        copy(source, target, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(
            PromotionError,
            match=r"the disk has no room for what proxy needs: .*No space left on device \(\d+ MB free\)\. What serves serves on",
        ):
            promote(two)
    assert not (disk.staging() / "proxy").exists()  # what was half copied makes room again
    assert consistent(home, fake, registry) == 1
    assert promote(two).version == 2


@pytest.mark.parametrize("step", EACH_STEP)
def test_a_disk_that_fills_up_at_any_step_costs_no_answers(home, fake, registry, promote, monkeypatch, step):
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    promote(one)
    append = Ledger.append

    def full(self, name, **what):
        if name == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        append(self, name, **what)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        with pytest.raises(PromotionError, match="the disk has no room for what proxy needs"):
            promote(two)
    assert answers(fake)[1] in {one.sha256, two.sha256}
    promote(two)
    assert consistent(home, fake, registry) == 2


def test_a_read_only_repository_is_said_and_the_champion_serves_on(home, fake, registry, promote, monkeypatch):
    """Root may write anywhere, so the rename raises what a read-only mount does."""
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    promote(one)

    def closed(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", closed)
        with pytest.raises(PromotionError, match=r"cannot be written: Read-only file system. What serves serves on"):
            promote(two)
    assert answers(fake) == (1, one.sha256)
    promote(two)
    assert consistent(home, fake, registry) == 2
