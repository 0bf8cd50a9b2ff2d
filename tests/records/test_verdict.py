"""verdict.json survives a round trip and says what is wrong with a file that is not one."""

import pytest

from pipeline.errors import ModelError
from pipeline.records.verdict import EqualSpeed, Verdict, load_verdict, save_verdict


def test_verdict_round_trip(tmp_path):
    ties = EqualSpeed(fastest="student", names=("int8", "student"), broken_by="smaller file", text="int8 is smaller")
    verdict = Verdict(
        verdict="PROMOTE", winner="int8", ties=ties, sentence="PROMOTE: int8", rule="-", budget={"p99_ms": None}
    )
    assert save_verdict(tmp_path, verdict).name == "verdict.json"
    assert load_verdict(tmp_path) == verdict


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "verdict.json").write_text('{"verdict": "MAYBE"}')
    with pytest.raises(ModelError, match=r"verdict\.json is not what `evaluate` writes"):
        load_verdict(tmp_path)
