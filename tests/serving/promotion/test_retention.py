import pytest
from serving_toys import QUICK, artifact, golden

from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.retention import gc
from pipeline.serving.promotion.rollback import rollback
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import version_directories


@pytest.fixture
def five(home, fake, registry, serving, in_process):
    """Five versions on disk, the last one serves."""
    for factor in range(1, 6):
        what = artifact(home, float(factor))
        promote_artifact(serving, what, golden(what), registry, {}, fake, QUICK)


def on_disk(home):
    return set(version_directories(home / "triton_repo" / "proxy"))


def test_what_serves_and_what_can_be_gone_back_to_stay(home, fake, five):
    assert on_disk(home) == {1, 2, 3, 4, 5}
    freed = gc("proxy", fake)
    assert set(freed) == {1, 2, 3}
    assert min(freed.values()) > 500
    assert on_disk(home) == {4, 5}
    assert gc("proxy", fake) == {}
    assert rollback("proxy", fake) == 4


def test_after_a_rollback_the_target_of_the_next_one_stays(home, fake, five):
    rollback("proxy", fake)
    assert set(gc("proxy", fake)) == {1, 2, 5}
    assert on_disk(home) == {3, 4}
    assert rollback("proxy", fake) == 3


def test_what_is_loaded_stays(home, fake, five):
    fake.stuck["proxy"] = {1: "READY", 2: "UNAVAILABLE"}
    assert set(gc("proxy", fake)) == {2, 3}


def test_nothing_is_removed_while_it_is_not_known_what_is_loaded(home, fake, five):
    fake.die()
    with pytest.raises(TritonError):
        gc("proxy", fake)
    assert on_disk(home) == {1, 2, 3, 4, 5}


def test_of_nothing_nothing_is_removed(home, fake):
    assert gc("proxy", fake) == {}
