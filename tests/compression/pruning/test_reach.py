"""The steps that the settings ask pruning for; what no network can give is refused in `tests/cli/test_check.py`."""

import pytest

from pipeline.compression.pruning import reach
from pipeline.errors import SettingsError
from pipeline.settings.base import Component
from pipeline.settings.compression import Prune

LOW_RANK, NM = {"name": "low_rank", "keep_macs": 0.5}, {"name": "n_m"}


def chain(*components, rounds):
    first, *then = (Component(**one) for one in components)
    return Prune(pruner=first, then=tuple(then), rounds=rounds)


def test_rounds_are_for_the_methods_that_can_be_cut_into_them():
    methods = (LOW_RANK, {"name": "depth", "drop": 2}, {"name": "channel", "keep_macs": 0.5}, NM)
    steps = reach.in_rounds(chain(*methods, rounds=3))
    assert [type(step).__name__ for step in steps] == ["LowRank", *["Depth"] * 2, *["Channel"] * 3, "NM"]


def test_wrong_arguments_are_refused_with_the_name_of_the_setting():
    with pytest.raises(SettingsError, match=r"^prune\.then\.0\.n is '2': Input should be a valid integer"):
        reach.in_rounds(chain(LOW_RANK, {"name": "n_m", "n": "2"}, rounds=1))
