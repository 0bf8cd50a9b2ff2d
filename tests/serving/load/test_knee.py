"""Against curves whose knee is known."""

import pytest

from pipeline.serving.load.knee import knee


def test_of_one_queue_with_random_arrivals_it_is_at_half_the_capacity():
    capacity = 1000.0
    rates = [100.0 * step for step in range(1, 10)]
    points = [(rate, 1 / (capacity - rate)) for rate in rates]  # M/M/1
    assert rates[knee(points)] == 500.0


@pytest.mark.parametrize("instances", [4, 8])
def test_of_a_server_with_so_many_instances_it_is_where_all_are_just_busy(instances):
    service = 0.01
    levels = [1, 2, 4, 8, 16, 32, 64]
    points = [(min(level, instances) / service, max(1.0, level / instances) * service) for level in levels]
    assert levels[knee(points)] == instances


def test_of_an_overloaded_open_loop_it_is_before_latency_explodes():
    points = [(1000.0, 1.0), (2000.0, 1.2), (3000.0, 1.9), (3900.0, 9.0), (3900.0, 900.0)]
    assert knee(points) == 1


def test_units_do_not_matter():
    points = [(10.0, 1.0), (20.0, 1.5), (25.0, 5.0)]
    assert knee(points) == knee([(rate * 1000, seconds * 1e3) for rate, seconds in points]) == 1


def test_two_points_have_no_knee_and_unanswered_load_is_none():
    assert knee([(1.0, 1.0), (2.0, 1.0)]) is None
    assert knee([(1.0, 1.0), (2.0, 1.0), (0.0, float("inf"))]) == 1
