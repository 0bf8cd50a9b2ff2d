"""Curves of the machine: under MLflow's names, in one count over all attempts, and never what ends a stage."""

import time

import pytest

from pipeline.machine import gpu
from pipeline.tracking import rest, runs, system_metrics
from pipeline.tracking.system_metrics import SystemMetrics


def test_a_sample_is_in_mlflows_own_names():
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    theirs = {}
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= monitor.aggregate_metrics()
    ours = system_metrics.sample()
    assert set(theirs) <= set(ours)
    for name in ("system_memory_usage_percentage", "disk_usage_percentage"):
        assert ours[name] == pytest.approx(theirs[name], abs=5)


def test_each_gpu_has_its_curves(monkeypatch):
    monkeypatch.setattr(gpu, "usage", lambda: [gpu.Usage(50, 20_000, 80_000)])
    found = system_metrics.sample()
    assert found["gpu_0_utilization_percentage"] == 50
    assert found["gpu_0_memory_usage_percentage"] == 25


def test_a_second_attempt_goes_on_counting(monkeypatch):
    logged = []
    before = [{"key": "system/cpu_utilization_percentage", "step": 4}, {"key": "loss", "step": 90}]
    monkeypatch.setattr(rest, "get_run", lambda run_id: {"data": {"metrics": before}})
    monkeypatch.setattr(runs, "log", lambda run_id, metrics: logged.append({one.step for one in metrics}))
    monkeypatch.setattr(system_metrics, "_SECONDS", 0.01)
    with SystemMetrics("r"):
        while len(logged) < 2:
            time.sleep(0.01)
    assert logged[:2] == [{5}, {6}]


def test_a_store_that_fails_ends_the_curves_and_not_the_stage(monkeypatch):
    def fails(run_id):
        raise ConnectionError("gone")

    monkeypatch.setattr(rest, "get_run", fails)
    monkeypatch.setattr(system_metrics, "_SECONDS", 0.01)
    watching = SystemMetrics("r")
    with watching:
        watching._thread.join(10)
        assert not watching._thread.is_alive()
