"""The journal's logic against a stand-in for Triton; test_triton.py shows the same on the real one."""

import os

import numpy as np
import pytest
from serving_toys import artifact, golden, images

from pipeline.config import Serving
from pipeline.errors import PromotionError
from pipeline.serving import ledger, promotion
from pipeline.serving.repository import served_versions, version_directories


@pytest.fixture
def promote(home, fake, registry, serving):
    def run(what, settings=serving, demanded=None):
        return promotion.promote(settings, what, demanded or golden(what), registry, {}, fake, load_timeout=5.0)

    return run


def answers(fake, model="proxy"):
    """(version, hash) that unpinned requests get."""
    answer = fake.infer(model, {"image": images(1)})
    return answer.version, answer.outputs["model_sha256"][0].tobytes().hex()


def consistent(home, fake, registry):
    """Disk, server, ledger and registry agree, and nothing is left over. Returns the version that serves."""
    directory = home / "triton_repo" / "proxy"
    version = ledger.Ledger("proxy").serving()["version"]
    assert max(served_versions(directory)) == version == answers(fake)[0] == registry.aliases["champion"]
    assert set(fake.loaded()) == {"proxy"}
    assert [path.name for path in (home / "triton_repo").iterdir()] == ["proxy"]
    assert max(version_directories(directory)) == version
    return version


def test_first_and_second_promotion(home, fake, registry, promote):
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    first = promote(one)
    assert (first.version, first.previous_version, first.reused) == (1, None, False)
    assert answers(fake) == (1, one.sha256)
    second = promote(two)
    assert (second.version, second.previous_version) == (2, 1)
    assert answers(fake) == (2, two.sha256)
    assert served_versions(home / "triton_repo" / "proxy") == (1, 2)  # the previous version stays warm
    assert registry.aliases == {"champion": 2, "previous": 1}
    assert consistent(home, fake, registry) == 2


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
    other = promotion.Artifact(
        one.onnx, one.spec.model_copy(update={"labels": ("a", "b", "c")}), one.sha256, one.candidate
    )
    promote(one)
    promote(other)
    directory = home / "triton_repo" / "proxy"
    assert served_versions(directory) == (2,)
    assert (directory / "labels.txt").read_text() == "a\nb\nc\n"
    assert promotion.rollback("proxy", registry, fake) == 1
    assert (directory / "labels.txt").read_text() == "none\nsome\nall\n"


@pytest.mark.parametrize("fault", ["broken", "wrong"])
def test_a_bad_candidate_is_refused_and_the_champion_serves_on(home, fake, registry, promote, fault):
    one, bad = artifact(home, 1.0), artifact(home, 2.0)
    promote(one)
    getattr(fake, fault).add(bad.sha256)
    with pytest.raises(PromotionError, match="proxy version 2 was refused, what served before serves on"):
        promote(bad)
    assert consistent(home, fake, registry) == 1
    getattr(fake, fault).clear()
    assert promote(bad).version == 2  # the registered version is used, not a third
    assert consistent(home, fake, registry) == 2


def test_a_first_candidate_that_is_refused_leaves_nothing(home, fake, registry, promote):
    bad = artifact(home, 1.0)
    fake.wrong.add(bad.sha256)
    with pytest.raises(PromotionError, match=r"4 of 4 golden answers differ .* by up to .*, allowed is 0.001"):
        promote(bad)
    assert list((home / "triton_repo").iterdir()) == []


def test_a_version_that_turns_bad_when_it_goes_live_is_taken_back(home, fake, registry, promote, monkeypatch):
    one, bad = artifact(home, 1.0), artifact(home, 2.0)
    promote(one)
    commit = promotion._Change.commit
    monkeypatch.setattr(promotion._Change, "commit", lambda *a: (commit(*a), fake.wrong.add(bad.sha256)))
    with pytest.raises(PromotionError, match="version 2 was refused"):
        promote(bad)
    assert consistent(home, fake, registry) == 1


def _steps(promote, what):
    """The ledger's steps of a promotion."""
    promote(what)
    return [entry["step"] for entry in ledger.Ledger("proxy").entries()]


@pytest.mark.parametrize("kill_at", range(9))
@pytest.mark.parametrize("first", [True, False], ids=["first deployment", "second"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_step_the_next_promotion_ends_right(home, fake, registry, promote, first, kill_at, moment):
    one, two = artifact(home, 1.0), artifact(home, 2.0)
    if not first:
        promote(one)
    append = ledger.Ledger.append
    seen = 0

    def fatal(self, step, **what):
        nonlocal seen
        seen += 1
        if moment == "after":
            append(self, step, **what)
        if seen == kill_at + 1:
            os._exit(9)  # as kill -9: no handler runs
        if moment == "before":
            append(self, step, **what)

    child = os.fork()
    if child == 0:
        ledger.Ledger.append = fatal
        try:
            promote(two)
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 9
    if not first:
        assert answers(fake)[1] in {one.sha256, two.sha256}  # somebody answers all the time
    done = promote(two)
    assert answers(fake) == (done.version, two.sha256)
    assert consistent(home, fake, registry) == done.version
    if not first:
        assert promotion.rollback("proxy", registry, fake) == 1
        assert answers(fake)[1] == one.sha256


def test_rollback_goes_one_back_and_says_where_it_cannot(home, fake, registry, promote):
    with pytest.raises(PromotionError, match="proxy cannot be rolled back: it has never been promoted"):
        promotion.rollback("proxy", registry, fake)
    promote(artifact(home, 1.0))
    promote(artifact(home, 2.0))
    assert promotion.rollback("proxy", registry, fake) == 1
    assert registry.aliases["champion"] == 1
    with pytest.raises(PromotionError, match="no version served before 1"):
        promotion.rollback("proxy", registry, fake)
    assert promote(artifact(home, 3.0)).version == 3
    assert consistent(home, fake, registry) == 3
    assert promotion.rollback("proxy", registry, fake) == 1


def test_numbers_that_fall_are_refused(home, fake, registry, promote):
    promote(artifact(home, 1.0))
    promote(artifact(home, 2.0))
    registry.path.unlink()
    with pytest.raises(PromotionError, match=r"numbers must rise. Was the registry emptied"):
        promote(artifact(home, 3.0))


def test_a_model_that_someone_else_put_there_is_not_touched(home, promote):
    (home / "triton_repo" / "proxy").mkdir()
    with pytest.raises(PromotionError, match="was not put there by a promotion"):
        promote(artifact(home, 1.0))
    assert (home / "triton_repo" / "proxy").is_dir()


def test_temporary_models_come_and_go(home, fake, serving, promote):
    promote(artifact(home, 1.0))
    stale = home / "triton_repo" / "proxy__eval_old"
    stale.mkdir()
    models = [artifact(home, 2.0, "student"), artifact(home, 3.0, "teacher")]
    with promotion.temporary_models(serving, models, fake) as names:
        assert names == {"student": "proxy__eval_student", "teacher": "proxy__eval_teacher"}
        assert answers(fake, names["teacher"]) == (1, models[1].sha256)
        assert not stale.exists()
    assert set(fake.loaded()) == {"proxy"}
    assert [path.name for path in (home / "triton_repo").iterdir()] == ["proxy"]


def test_a_temporary_model_that_cannot_be_loaded_is_named(home, fake, serving):
    bad = artifact(home, 2.0, "student")
    fake.broken.add(bad.sha256)
    with (
        pytest.raises(PromotionError, match="candidate 'student' cannot be served"),
        promotion.temporary_models(serving, [bad], fake),
    ):
        pass
    assert list((home / "triton_repo").iterdir()) == []


@pytest.mark.parametrize(
    ("served", "says"),
    [
        (np.zeros((2, 4), np.float32), r"has shape \(2, 4\), not \(2, 3\)"),
        (np.full((2, 3), np.nan, np.float32), "not finite"),
        (np.ones((2, 3), np.float32), "2 of 2 golden answers differ"),
    ],
)
def test_difference_is_put_into_words(served, says):
    wanted = {"logits": np.zeros((2, 3), np.float32)}
    assert promotion.difference(wanted, wanted) is None
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(promotion.difference(wanted, {"logits": served}))
