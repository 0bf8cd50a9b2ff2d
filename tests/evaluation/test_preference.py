"""Who is chosen among candidates inside the budget: what must hold for any speeds, then how often noise has a say."""

import itertools
from collections import Counter

import numpy as np
import pytest
from gate_toys import measured

from pipeline.evaluation.intervals import TURNS
from pipeline.evaluation.preference import preferred

MARGIN = 0.1


def choose(*candidates, margin=MARGIN):
    chosen, ties = preferred(candidates, margin, 0.95)
    return chosen.name, ties


def turns(rng, speed, noise, machine):
    """Images per second in each turn: the machine's own speed at the time, the candidate's, and chance."""
    return tuple(speed * machine * np.exp(rng.normal(0, noise, TURNS)))


def machine(rng):
    """What is left of a shared machine in each round: anything from all to a third, drifting."""
    return np.clip(np.cumprod(rng.uniform(0.7, 1.4, TURNS)), 0.33, 1.0)


def test_the_fastest_wins_where_it_is_faster_by_more_than_the_margin():
    fast, small = measured("student", size=140_000, served=3000.0), measured("int8", size=50_000, served=2000.0)
    assert choose(fast, small) == ("student", None)


def test_within_the_margin_the_smaller_file_wins_and_the_words_say_so():
    name, ties = choose(measured("student", size=140_000, served=3000.0), measured("int8", size=50_000, served=2850.0))
    assert (name, ties.fastest, ties.names, ties.broken_by) == ("int8", "student", ("int8", "student"), "smaller file")
    assert ties.text == (
        "int8 (0.95x, 0.95 to 0.95) and student count as equally fast through Triton (times student's throughput, 95 % "
        "interval); int8 has the smallest file, 50,000 bytes"
    )


def test_then_fewer_macs_then_the_earlier_step():
    same = {"size": 1000, "served": 3000.0}
    name, ties = choose(measured("a", macs=90, **same), measured("b", macs=80, **same))
    assert (name, ties.broken_by) == ("b", "fewer MACs")
    name, ties = choose(measured("a", made_by="prune", **same), measured("b", made_by="distill", **same))
    assert (name, ties.broken_by) == ("b", "earlier step")
    assert ties.text.endswith("; b has the earliest step")


def test_turns_that_leave_it_open_count_as_equally_fast():
    wide = tuple(3000 * np.array([0.5, 1.4, 0.7, 1.2, 0.9, 0.6, 1.3, 0.8]))
    slower = measured("int8", size=50_000, served=2400.0, turns=tuple(0.8 * np.roll(wide, 1)))
    assert choose(measured("student", size=140_000, served=3000.0, turns=wide), slower)[0] == "int8"
    clear = measured("int8", size=50_000, served=2400.0, turns=tuple(0.8 * np.array(wide)))  # paired: no doubt
    assert choose(measured("student", size=140_000, served=3000.0, turns=wide), clear) == ("student", None)


def test_the_order_of_the_candidates_has_no_say():
    rng = np.random.default_rng(3)
    for _ in range(20):
        whole = machine(rng)
        candidates = [
            measured(name, size=int(rng.integers(1, 4)) * 1000, served=speed, turns=turns(rng, speed, 0.05, whole))
            for name, speed in zip("abcd", rng.choice([2000.0, 2100.0, 2900.0], 4), strict=True)
        ]
        assert len({choose(*order)[0] for order in itertools.permutations(candidates)}) == 1


def test_whatever_slows_all_of_a_round_down_changes_nothing():
    rng = np.random.default_rng(4)
    speeds = {"teacher": 1000.0, "student": 2000.0, "int8": 2500.0}
    calm = {name: turns(rng, speed, 0.03, np.ones(TURNS)) for name, speed in speeds.items()}
    sizes = {"teacher": 9000, "student": 3000, "int8": 5000}
    expected = choose(*(measured(n, size=sizes[n], served=speeds[n], turns=calm[n]) for n in speeds))[0]
    for _ in range(20):
        slow = machine(rng)
        hit = {name: tuple(slow * np.array(found)) for name, found in calm.items()}
        assert choose(*(measured(n, size=sizes[n], served=speeds[n], turns=hit[n]) for n in speeds))[0] == expected


@pytest.mark.parametrize("noise", [0.02, pytest.param(0.1, marks=pytest.mark.extra), 0.3])
@pytest.mark.parametrize("ratio", [1.0, pytest.param(0.97, marks=pytest.mark.extra), 0.93])
def test_ten_evaluations_of_candidates_within_the_margin_name_the_smaller_one_nine_times(noise, ratio):
    assert winners(ratio, noise)["small"] >= 0.96  # then nine of ten agree in 94 % or more


@pytest.mark.parametrize(("noise", "ratio"), [(0.02, 0.84), (0.05, 0.75), (0.1, 0.6)])
def test_ten_evaluations_name_a_clearly_faster_one_nine_times(noise, ratio):
    assert winners(ratio, noise)["large"] >= 0.98


def winners(ratio, noise, evaluations=400):
    """How often the small candidate wins, which is really `ratio` times as fast as a large one."""
    rng = np.random.default_rng(7)
    counted = Counter()
    for _ in range(evaluations):
        whole = machine(rng)
        pair = [
            measured(name, size=size, turns=turns(rng, speed, noise, whole))
            for name, size, speed in (("small", 1000, 3000 * ratio), ("large", 2000, 3000.0))
        ]
        counted[choose(*pair)[0]] += 1
    return {name: count / evaluations for name, count in counted.items()}
