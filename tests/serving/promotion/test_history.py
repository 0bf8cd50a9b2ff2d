import pytest
from serving_toys import QUICK, artifact, golden

from pipeline.errors import PromotionError
from pipeline.serving.promotion import history
from pipeline.serving.promotion.ledger import Ledger
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.retention import gc
from pipeline.serving.promotion.rollback import rollback


def test_each_change_is_a_line(home, fake, registry, serving, in_process):
    def promote(factor, demanded=None):
        what = artifact(home, factor)
        promote_artifact(serving, what, demanded or golden(what), registry, {}, fake, QUICK)
        return what

    assert history.events("proxy") == []
    one = promote(1.0)
    two = promote(2.0)
    with pytest.raises(PromotionError):
        promote(3.0, golden(one))
    rollback("proxy", fake)
    gc("proxy", fake)
    told = [(event.version, event.what) for event in history.events("proxy")]
    life = ["live", "observed", "champion"]
    assert told == [
        *((1, what) for what in life),
        *((2, what) for what in life),
        (3, "refused"),
        (1, "rolled back"),
        (2, "removed"),
    ]
    details = [event.detail for event in history.events("proxy")]
    assert details[0].startswith(f"the first, SHA-256 {one.sha256[:12]}")
    assert details[3].startswith(f"after version 1, SHA-256 {two.sha256[:12]}")
    assert "golden answers differ" in details[6]
    assert details[7] == "from version 2"
    assert history.interrupted("proxy") is None


def test_what_did_not_come_to_its_end_is_said(home):
    ledger = Ledger("proxy")
    ledger.append("begin", version=4, sha256="0" * 64, previous=None)
    ledger.append("staged", version=4)
    assert history.interrupted("proxy") == "version 4: the last step was staged; `flyweight reconcile` ends it"
