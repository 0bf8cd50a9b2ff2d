from pipeline.serving.promotion.ledger import Ledger


def test_lines_come_back_in_order(home):
    ledger = Ledger("proxy")
    ledger.append("begin", version=1)
    ledger.append("verified", version=1, previous=None)
    assert [entry["step"] for entry in ledger.entries()] == ["begin", "verified"]
    assert ledger.path == home / ".triton_repo" / "ledger" / "proxy.jsonl"


def test_a_line_that_its_writer_was_killed_in_is_dropped(home):
    ledger = Ledger("proxy")
    ledger.append("begin", version=1)
    with ledger.path.open("ab") as file:
        file.write(b'{"step": "verif')
    assert [entry["step"] for entry in ledger.entries()] == ["begin"]
    ledger.append("begin", version=2)
    assert [entry.get("version") for entry in ledger.entries()] == [1, 2]


def test_the_last_verification_or_rollback_serves(home):
    ledger = Ledger("proxy")
    assert ledger.serving() is None
    ledger.append("verified", version=1, previous=None)
    ledger.append("verified", version=4, previous=1)
    ledger.append("refused", version=5, reason="wrong")
    assert ledger.serving()["version"] == 4
    assert (ledger.before(4), ledger.before(1)) == (1, None)
    ledger.append("rolled_back", version=1, previous=4)
    assert ledger.serving()["version"] == 1


def test_what_was_withdrawn_does_not_serve(home):
    ledger = Ledger("proxy")
    ledger.append("verified", version=1, previous=None)
    ledger.append("withdrawn", version=1, reason="it failed")
    assert ledger.serving() is None
    assert ledger.has_served() == {1}


def test_a_version_is_unobserved_from_its_verification_to_the_end_of_its_observation(home):
    ledger = Ledger("proxy")
    assert ledger.unobserved() is None
    ledger.append("verified", version=1, previous=None)
    assert ledger.unobserved() == 1
    ledger.append("observed", version=1)
    assert ledger.unobserved() is None
    ledger.append("verified", version=2, previous=1)
    ledger.append("rolled_back", version=1, previous=2)
    assert ledger.unobserved() is None
