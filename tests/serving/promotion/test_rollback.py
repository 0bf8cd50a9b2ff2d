import shutil

import pytest
from serving_toys import QUICK, artifact, golden, images

from pipeline.errors import PromotionError
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.ledger import Ledger
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.rollback import rollback
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import served_versions


@pytest.fixture
def promote(home, fake, registry, serving, in_process):
    def run(factor):
        what = artifact(home, factor)
        promote_artifact(serving, what, golden(what), registry, {}, fake, QUICK)
        return what

    return run


def version(fake):
    return fake.infer("proxy", {"image": images(1)}).version


def test_it_goes_one_back_and_says_where_it_cannot(home, fake, promote):
    with pytest.raises(PromotionError, match=r"proxy cannot be rolled back: no version of it serves by .*proxy\.jsonl"):
        rollback("proxy", fake)
    promote(1.0)
    with pytest.raises(
        PromotionError, match=r"no version served before 1. `flyweight promote VERSION` can go anywhere"
    ):
        rollback("proxy", fake)
    promote(2.0)
    assert rollback("proxy", fake) == 1
    assert version(fake) == 1
    with pytest.raises(PromotionError, match="no version served before 1"):
        rollback("proxy", fake)
    promote(3.0)
    assert version(fake) == 3
    assert rollback("proxy", fake) == 1


def test_an_interrupted_promotion_is_what_is_rolled_back(home, fake, promote):
    promote(1.0)
    promote(2.0)
    change = Change("proxy", fake, 1.0)
    shutil.copytree(change.version_directory(2), change.version_directory(3))
    change.write_policy(3, [2, 3])
    change.load()
    assert version(fake) == 3
    assert rollback("proxy", fake) == 2
    assert version(fake) == 2


def test_a_target_whose_files_are_gone_or_damaged_is_said(home, fake, promote):
    promote(1.0)
    promote(2.0)
    target = home / "triton_repo" / "proxy" / "1"
    fake.unload("proxy")
    (target / "model.onnx").write_bytes(b"half")
    with pytest.raises(PromotionError, match=r"cannot be rolled back to version 1: .*has SHA-256 .*, not "):
        rollback("proxy", fake)
    shutil.rmtree(target)
    with pytest.raises(PromotionError, match="the files of version 1 are gone"):
        rollback("proxy", fake)
    assert Ledger("proxy").serving()["version"] == 2


def test_a_server_that_does_not_go_back_is_told_of_and_the_disk_says_the_old_version(home, fake, promote):
    one = promote(1.0)
    promote(2.0)
    fake.wrong.add(one.sha256)
    with pytest.raises(
        TritonError, match=r"was asked to serve version 1 again: 4 of 4 golden answers differ.*restart Triton"
    ):
        rollback("proxy", fake)
    assert served_versions(home / "triton_repo" / "proxy") == (1,)
