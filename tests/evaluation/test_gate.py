"""What the gate says, in numbers and in words."""

import pytest

from pipeline.evaluation import gate
from pipeline.records.evaluation import Measured
from pipeline.records.measures import Estimate, Interval, Offline, Quality, Served, ServedParity
from pipeline.settings.gate import Budget

BUDGET = Budget(accuracy_drop=0.01, size_ratio=8, speedup=8, served_speedup=2.5)


def quality(drop=0.0, half=0.002, teacher=False):
    accuracy = Estimate(value=0.92 - drop, low=0.91 - drop, high=0.93 - drop)
    return Quality(
        images=1000, accuracy=accuracy, agreement=0.95, churn=0.02, ece=0.02, nll=0.3, recall=(0.9, 0.92),
        drop=None if teacher else Estimate(value=drop, low=drop - half, high=drop + half),
        confusion=((460, 40), (40, 460)), reliability=(),
    )  # fmt: skip


def candidate(
    name, *, drop=0.003, test_drop=None, size=100_000, speed=16_000.0, served=3000.0, p99=10.0, failures=0, **more
):
    load = {
        c: Served(throughput=served, p50_ms=p99 / 2, p99_ms=p99, requests=6000, failures=failures) for c in (16, 64)
    }
    offline = {64: Offline(images_per_second=speed, p50_ms=4, p99_ms=5, calls=100)}
    fields = {
        "name": name, "file": f"{name}/model.onnx", "sha256": "0" * 64, "size_bytes": size, "parameters": 1, "macs": 1,
        "precision": "int8", "target": "cpu", "source": "pruned", "offline": offline, "served": load,
        "validation": quality(drop, teacher=name == "teacher"),
        "test": quality(drop if test_drop is None else test_drop, teacher=name == "teacher"),
    }  # fmt: skip
    return Measured(**fields | more)


TEACHER = candidate("teacher", drop=0.0, size=1_200_000, speed=1000.0, served=800.0)


def decide(*candidates, budget=BUDGET):
    return gate.decide(TEACHER, [TEACHER, *candidates], budget, confidence=0.95)


def test_promotes_the_only_candidate_inside_the_budget():
    verdict = decide(candidate("int8"), candidate("pruned", size=190_000))
    assert (verdict.verdict, verdict.winner, verdict.nearest, verdict.misses) == ("PROMOTE", "int8", None, ())
    assert verdict.sentence.startswith(
        "PROMOTE: int8: accuracy drop 0.30 points on test images (upper 95 % bound 0.50)"
    )
    assert verdict.budget["size_ratio"] == 8


def test_every_limit_of_the_budget_is_a_check_with_its_value():
    budget = BUDGET.model_copy(update={"p99_ms": 12.0, "max_size_mb": 0.2})
    (standing,) = decide(candidate("int8"), budget=budget).candidates
    values = {check.criterion: (check.value, check.limit, check.on) for check in standing.checks}
    assert values == {
        "accuracy_drop": (pytest.approx(0.005), 0.01, "test"),
        "size_ratio": (12, 8, "file"),
        "max_size_mb": (0.1, 0.2, "file"),
        "speedup": (16, 8, "offline"),
        "served_speedup": (3.75, 2.5, "served"),
        "failed_requests": (0, 0, "served"),
        "p99_ms": (10, 12, "served"),
    }


@pytest.mark.parametrize(
    ("criterion", "change", "limits", "shortfall"),
    [
        ("accuracy_drop", {"drop": 0.018}, {}, 1.0),
        ("size_ratio", {"size": 200_000}, {}, 0.25),
        ("max_size_mb", {}, {"max_size_mb": 0.08}, 0.25),
        ("speedup", {"speed": 6000.0}, {}, 0.25),
        ("served_speedup", {"served": 1000.0}, {}, 0.5),
        ("p99_ms", {"p99": 18.0}, {"p99_ms": 12.0}, 0.5),
        ("failed_requests", {"failures": 1}, {}, 2.0),
    ],
)
def test_each_limit_alone_makes_it_infeasible(criterion, change, limits, shortfall):
    verdict = decide(candidate("int8", **change), budget=BUDGET.model_copy(update=limits))
    assert (verdict.verdict, verdict.winner, verdict.nearest) == ("INFEASIBLE", None, "int8")
    assert [check.criterion for check in verdict.misses] == [criterion]
    assert verdict.misses[0].shortfall == pytest.approx(shortfall)


def test_infeasible_is_said_in_one_sentence_with_numbers_and_a_cure():
    assert decide(candidate("int8", drop=0.0231)).sentence == (
        "INFEASIBLE: nearest is int8: accuracy drop 2.31 points on test images (upper 95 % bound 2.51) where 1.00 is "
        "allowed; raise budget.accuracy_drop or train longer (distill.fit.epochs, prune.fit.epochs)"
    )
    assert decide(candidate("int8", size=200_000, speed=6000.0)).sentence == (
        "INFEASIBLE: nearest is int8: 6.00x smaller than the teacher where 8x is asked; 6.00x the teacher's images/s "
        "offline at batch 64 where 8x is asked; lower budget.size_ratio or lower budget.speedup or prune further "
        "(prune.pruner.keep_macs) or take a narrower student (distill.model.width)"
    )


def test_the_upper_bound_is_held_to_the_budget_not_the_value():
    assert decide(candidate("int8", drop=0.0079)).verdict == "PROMOTE"
    assert decide(candidate("int8", drop=0.0081)).verdict == "INFEASIBLE"


def test_a_limit_of_no_drop_at_all_has_a_finite_shortfall():
    verdict = decide(candidate("int8", drop=0.003), budget=BUDGET.model_copy(update={"accuracy_drop": 0.0}))
    assert verdict.misses[0].shortfall == pytest.approx(5.0)


def test_among_feasible_ones_the_highest_throughput_through_triton_wins():
    verdict = decide(candidate("int8", served=3000.0), candidate("student", served=3600.0, size=140_000))
    assert verdict.winner == "student"


def test_equally_fast_ones_are_named_with_what_chose_among_them():
    verdict = decide(candidate("student", served=3200.0, size=140_000), candidate("int8"))
    assert (verdict.winner, verdict.ties.names, verdict.ties.broken_by) == ("int8", ("int8", "student"), "smaller file")
    assert verdict.sentence.endswith(f"; {verdict.ties.text}")
    assert decide(candidate("int8")).ties is None


def test_how_much_slower_still_counts_as_equally_fast_is_a_setting():
    pair = candidate("student", served=3200.0, size=140_000), candidate("int8")
    assert decide(*pair, budget=BUDGET.model_copy(update={"equal_speed": 0.05})).winner == "student"


def in_turns(name, speeds, **more):
    """A candidate whose turns through Triton and offline are `speeds` times 3000 and 16,000 images per second."""
    plain = candidate(name, **more)
    served, offline = (tuple(base * one for one in speeds) for base in (3000, 16_000))
    p99 = Interval(low=8, high=11.5)
    load = {c: one.model_copy(update={"turns": served, "p99_interval": p99}) for c, one in plain.served.items()}
    return plain.model_copy(
        update={"served": load, "offline": {64: plain.offline[64].model_copy(update={"turns": offline})}}
    )


def test_speeds_are_held_to_the_budget_by_their_lower_bounds_and_p99_by_its_upper_one():
    teacher = in_turns("teacher", [0.25] * 8, drop=0.0, size=1_200_000)
    shaky = in_turns("int8", [1.0, 1.3, 0.7, 1.1, 0.9, 1.2, 0.8, 1.0])

    def decision(**limits):
        budget = BUDGET.model_copy(update={"speedup": 1.0, "served_speedup": 1.0, "p99_ms": 12.0} | limits)
        return gate.decide(teacher, [shaky], budget, confidence=0.95)

    assert decision().verdict == "PROMOTE"
    for limits in ({"speedup": 3.7}, {"served_speedup": 3.7}, {"p99_ms": 11.0}):
        verdict = decision(**limits)  # the value itself is inside: 4x the teacher, 10 ms
        assert [check.criterion for check in verdict.misses] == list(limits)
    assert "p99 10.00 ms through Triton at concurrency 16 (upper 95 % bound 11.50) where 11 ms" in verdict.sentence
    (miss,) = decision(served_speedup=3.7).misses
    assert 3.0 < miss.value < 3.7
    assert f"at concurrency 64 (lower 95 % bound {miss.value:.2f}) where 3.7x is asked" in miss.text


def test_validation_nominates_and_test_decides():
    flattered = candidate("int8", drop=0.002, test_drop=0.02)
    runner_up = candidate("pruned", served=2400.0)
    verdict = decide(flattered, runner_up)
    assert (verdict.verdict, verdict.nearest) == ("INFEASIBLE", "int8")
    assert [c.checks[0].on for c in verdict.candidates] == ["test", "validation"]


def test_test_accuracy_has_no_say_in_the_nomination():
    lucky_on_test = candidate("pruned", drop=0.03, test_drop=-0.01, served=9000.0)
    assert decide(lucky_on_test, candidate("int8")).winner == "int8"


def test_a_nominee_that_validation_doubted_may_pass_on_test():
    assert decide(candidate("int8", drop=0.0095, test_drop=0.006)).winner == "int8"


def test_nearest_has_the_smallest_sum_of_shortfalls():
    verdict = decide(candidate("student", size=600_000, speed=4000.0), candidate("int8", size=160_000))
    assert verdict.nearest == "int8"


def test_the_teacher_never_wins():
    verdict = gate.decide(TEACHER, [TEACHER], Budget(), 0.95)
    assert (verdict.verdict, verdict.nearest) == ("INFEASIBLE", None)
    assert verdict.sentence == "INFEASIBLE: no candidate can be promoted: there is none"


def test_what_cannot_be_served_here_is_not_eligible_and_says_why():
    parity = ServedParity(images=64, max_difference=3.0, differing=5)
    verdict = decide(
        candidate("int8_tensorrt", target="tensorrt"),
        candidate("pruned", served=0.0, note="Triton refused it").model_copy(update={"served": {}}),
        candidate("int8", served_parity=parity),
    )
    assert verdict.sentence == (
        "INFEASIBLE: no candidate can be promoted: "
        "int8_tensorrt: its graph is written for TensorRT and Triton runs ONNX Runtime on the CPU here; "
        "pruned: Triton refused it; "
        "int8: Triton answers 5 of 64 images differently than the same file does here"
    )
    assert not any(standing.eligible or standing.checks for standing in verdict.candidates)


def test_int8_that_is_slower_gives_way_to_its_float_original():
    slow = candidate("int8", served=3000.0, gives_way_to="pruned")
    original = candidate("pruned", served=2900.0, size=140_000)
    assert decide(candidate("int8", served=3000.0), original).winner == "int8"
    assert decide(slow, original).winner == "pruned"
    assert decide(candidate("int8", served=9000.0, gives_way_to="pruned"), original).winner == "pruned"


def test_int8_that_is_slower_is_chosen_where_only_it_holds():
    slow = candidate("int8", gives_way_to="pruned")
    assert decide(slow, candidate("pruned", size=400_000)).winner == "int8"
    assert decide(slow).winner == "int8"


def test_int8_that_is_slower_is_not_the_nearest_where_its_original_misses_no_more():
    both = {"drop": 0.05, "size": 100_000}
    verdict = decide(candidate("int8", gives_way_to="pruned", **both), candidate("pruned", served=2600.0, **both))
    assert (verdict.verdict, verdict.nearest) == ("INFEASIBLE", "pruned")
