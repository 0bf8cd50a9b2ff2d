from pipeline.compression.pruning.reach import in_rounds
from pipeline.settings.schema import Component, Prune


def chain(*methods, rounds):
    first, *then = (Component(**method) for method in methods)
    return Prune(pruner=first, then=tuple(then), rounds=rounds)


def test_rounds_are_for_the_methods_that_can_be_cut_into_them():
    methods = (
        {"name": "low_rank", "keep_macs": 0.5},
        {"name": "depth", "drop": 2},
        {"name": "channel", "keep_macs": 0.5},
        {"name": "n_m"},
    )
    steps = in_rounds(chain(*methods, rounds=3))
    assert [type(step).__name__ for step in steps] == ["LowRank", *["Depth"] * 2, *["Channel"] * 3, "NM"]
