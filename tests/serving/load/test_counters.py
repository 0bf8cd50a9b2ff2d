import pytest

from pipeline.serving.load.counters import Counters, Snapshot, between, gauges

PAGE = """\
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.75
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
nv_gpu_utilization{gpu_uuid="GPU-2"} 1
nv_gpu_power_usage{gpu_uuid="GPU-1"} 70
nv_inference_count{model="proxy",version="1"} 12
"""


def test_gauges_are_read_and_gpus_are_averaged():
    assert gauges(PAGE) == {"nv_cpu_utilization": 0.75, "nv_gpu_utilization": 0.75}
    assert gauges("nv_inference_count 3\n") == {}


def snapshot(versions, batches, cpu=None, gpu=None):
    names = ("requests", "executions", "queue", "compute")
    return Snapshot(
        {name: dict(zip(names, counts, strict=True)) for name, counts in versions.items()}, batches, cpu, gpu
    )


def test_what_happened_is_the_difference_over_all_versions():
    before = snapshot({"1": (100, 60, 5_000_000, 9_000_000)}, {"1": {1: 40, 3: 20}}, cpu=0.1)
    middle = snapshot({"1": (100, 60, 5_000_000, 9_000_000)}, {"1": {1: 40, 3: 20}}, cpu=0.5)
    after = snapshot(
        {"1": (130, 70, 35_000_000, 19_000_000), "2": (10, 10, 2_000_000, 20_000_000)},
        {"1": {1: 40, 3: 30}, "2": {1: 10}},
        cpu=0.7,
    )
    found = between([before, middle, after])
    assert (found.requests, found.executions) == (40, 20)
    assert found.batches == {1: 10, 3: 10}
    assert found.mean_batch == 2.0
    assert found.queue_ms == pytest.approx((30 + 2) / 40)
    assert found.compute_ms == pytest.approx((10 + 20) / 40)
    assert found.cpu == pytest.approx(0.6)  # the one before belongs to what was before
    assert found.gpu is None


def test_a_version_that_was_unloaded_meanwhile_is_left_out():
    before = snapshot({"1": (100, 100, 0, 0)}, {"1": {1: 100}})
    after = snapshot({"2": (7, 7, 0, 0)}, {"2": {1: 7}})
    assert between([before, after]).requests == 7


def test_nothing_has_no_batches():
    empty = snapshot({"1": (0, 0, 0, 0)}, {"1": {}})
    found = between([empty, empty])
    assert (found.mean_batch, found.queue_ms, found.batches) == (0.0, 0.0, {})


def test_a_server_that_gives_no_statistics_is_no_error():
    with Counters("proxy", "", "127.0.0.1:9") as counters:
        assert counters.snapshot() is None
