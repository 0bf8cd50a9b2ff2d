"""ONNX Runtime without any server: the limit. As many threads as cores, each with a session and its share of the requests.

Run as ``python in_process.py PLAN``; prints one line of JSON. With a concurrency of c, each of n threads runs batches of
c / n rows one after another, so that c rows are under way at any time; the latency of a row is that of its batch.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
from onnx_rows import Rows


def main(plan_file: Path) -> None:
    """Measure as the plan says."""
    plan = json.loads(plan_file.read_text())
    os.environ["PEER_MODEL"] = plan["model"]
    body = Path(plan["rows"]).read_bytes()
    threads = min(plan["cores"], plan["concurrency"])
    share = -(-plan["concurrency"] // threads)
    batch = (body * share)[: plan["row_bytes"] * share]
    sessions = [Rows() for _ in range(threads)]
    latencies: list[list[float]] = [[] for _ in range(threads)]
    start = time.perf_counter() + plan["warmup"]
    end = start + plan["seconds"]

    def work(number: int) -> None:
        rows, took = sessions[number], latencies[number]
        now = time.perf_counter()
        while now < end:
            before = now
            rows.array(batch)
            now = time.perf_counter()
            if before >= start:
                took.append(now - before)

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    every = np.concatenate(latencies)
    print(
        json.dumps(
            {
                "throughput": len(every) * share / plan["seconds"],
                "p50_ms": float(np.quantile(every, 0.5)) * 1e3,
                "p99_ms": float(np.quantile(every, 0.99)) * 1e3,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
