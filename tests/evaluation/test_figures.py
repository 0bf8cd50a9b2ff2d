"""The flat numbers of an evaluation: every measure once, with the bounds that the gate holds to the budget."""

import pytest
from gate_toys import measured

from pipeline.evaluation.figures import flat_metrics
from pipeline.evaluation.preference import served_ratio
from pipeline.records.evaluation import Evaluation, Host

HOST = Host(cpu="a cpu", cores=2, flags=(), system="Linux", python="3.11", onnxruntime="1", torch="2")


def test_figures_are_named_by_candidate_and_carry_their_bounds():
    teacher = measured("teacher", size=4000, turns=(990.0, 1010, 1000, 1005, 995, 1002, 998, 1000))
    int8 = measured("int8", size=1000, turns=(2900.0, 3100, 3000, 3050, 2950, 3020, 2980, 3000))
    found = flat_metrics(Evaluation(labels=("a", "b"), confidence=0.95, candidates=(teacher, int8), host=HOST))
    assert (found["int8_size_bytes"], found["int8_size_ratio"]) == (1000, 4)
    assert found["int8_served_throughput_c64"] == pytest.approx(3000, rel=0.01)
    load = int8.served[64].interval
    bounds = [found["int8_served_throughput_c64_lower"], found["int8_served_throughput_c64_upper"]]
    assert bounds == [load.low, load.high]
    assert found["int8_served_speedup_lower"] == served_ratio(int8, teacher, 0.95).low
    assert found["teacher_served_speedup"] == 1
    assert all(isinstance(value, float) for value in found.values())
