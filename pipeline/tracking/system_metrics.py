"""How busy the machine is while a stage runs, as curves under the names that MLflow's page of system metrics shows.

MLflow's own monitor does the same, but to import it takes longer than many a stage.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

import psutil

from pipeline.machine import gpu
from pipeline.tracking import rest, runs

_SECONDS = 5.0
_PREFIX = "system/"


class SystemMetrics:
    """Logs a sample to the run `run_id` every five seconds, in a thread, inside its block."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="system-metrics", daemon=True)
        network = psutil.net_io_counters()
        self._before = (network.bytes_recv, network.bytes_sent)

    def __enter__(self) -> None:
        psutil.cpu_percent()  # the first call has nothing to compare with
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _loop(self) -> None:
        step: int | None = None
        while not self._ended.wait(_SECONDS):
            try:
                step = self._next_step() if step is None else step + 1
                at = runs.now()
                runs.log(
                    self._run_id,
                    metrics=[
                        runs.Metric(_PREFIX + name, value, at, step) for name, value in sample(*self._before).items()
                    ],
                )
            except Exception:  # the stage goes on without curves of the machine; its own writes will say what is wrong
                return

    def _next_step(self) -> int:
        """One more than the last that an attempt before this one logged."""
        found = rest.get_run(self._run_id)["data"].get("metrics", [])
        return max((int(one["step"]) + 1 for one in found if one["key"].startswith(_PREFIX)), default=0)


def sample(received: int = 0, sent: int = 0) -> dict[str, float]:
    """Return name -> value of processor, memory, disk, network and GPUs; network in megabytes beyond the bytes given."""
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / 1e6,
        "disk_available_megabytes": disk.free / 1e6,
        "network_receive_megabytes": (network.bytes_recv - received) / 1e6,
        "network_transmit_megabytes": (network.bytes_sent - sent) / 1e6,
    }
    for number, usage in enumerate(gpu.usage()):
        found[f"gpu_{number}_utilization_percentage"] = usage.utilization
        found[f"gpu_{number}_memory_usage_megabytes"] = usage.memory_used
        found[f"gpu_{number}_memory_usage_percentage"] = usage.memory_used / usage.memory_total * 100
    return found
