"""Does changing what is served cost a request? Promotions and rollbacks under closed-loop clients, every answer checked.

    python benchmarks/swap.py                      20 promotions and 20 rollbacks under 16 clients, then 50 swaps for memory
    python benchmarks/swap.py --promotions 3 --swaps 12 --json result.json

A Triton of its own on free ports serves small networks whose weights are small integers: then float32 is exact in every
batch that may be formed, and an answer is either bit-equal to what its version's file gives or wrong. Clients are threads
of other processes, so that their interpreter does not wait for the promoter's.

Memory: resident size of the server with its stubs, and the server's threads, after each of `--swaps` swaps. They are flat
if the median of the last quarter is above that of the quarter before the middle by less than BOUND. A control shows that
this can fail: the same check on swaps that leave their candidate loaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from pipeline.files import sha256
from pipeline.machine import places
from pipeline.machine.cpu import cores
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.retention import gc
from pipeline.serving.promotion.rollback import rollback
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.golden import Golden
from pipeline.serving.triton.repository import Artifact
from pipeline.serving.triton.server import command, install
from pipeline.serving.triton.temporary import remove_models
from pipeline.settings.serving import Promote, Serving

MODEL = "proxy"
SHAPE = (1, 28, 28)
CLASSES = 10
BOUND = 0.05
"""Share by which memory and threads may be higher at the end."""
LIMIT_MS = 100.0
"""What a rollback is to take at most while the version is warm."""


def artifact(directory: Path, seed: int) -> Artifact:
    """A convolution, a ReLU and a matrix with small integer weights from `seed`: (N, 1, 28, 28) uint8 -> (N, 10)."""
    chance = np.random.default_rng(seed)
    weights = {
        "kernel": chance.integers(-2, 3, (8, 1, 3, 3)).astype(np.float32),
        "matrix": chance.integers(-2, 3, (8 * 13 * 13, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["float", "kernel"], ["conv"], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    spec = image_classifier(
        "resnet", {}, SHAPE, tuple(map(str, range(CLASSES))), Preprocessing(mean=(0.5,), std=(0.5,))
    )
    path = directory / f"model-{seed}" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    (path.parent / "model.json").write_text(spec.model_dump_json())
    return Artifact(path, spec, sha256(path), f"seed-{seed}")


def images(count: int) -> np.ndarray:
    """Images of 16 grey values: every sum stays below 2^24, where float32 counts exactly."""
    return np.random.default_rng(0).integers(0, 16, (count, *SHAPE), dtype=np.uint8)


class Counting:
    """A registry that counts versions and remembers nothing else."""

    def __init__(self) -> None:
        self.shas: list[str] = []

    def register(self, name: str, directory: Path, tags: dict[str, str]) -> int:
        """Return the next version."""
        self.shas.append(tags["sha256"])
        return len(self.shas)

    def version_with_sha(self, name: str, sha256: str) -> int | None:
        """Return the version of these bytes, or None."""
        return self.shas.index(sha256) + 1 if sha256 in self.shas else None

    def attach(self, name: str, version: int, file: Path) -> None:
        """Forget the file."""

    def fetch(self, name: str, version: int, directory: Path) -> dict[str, str]:
        """Nothing can be fetched from here."""
        raise NotImplementedError

    def aliases(self, name: str) -> dict[str, int]:
        """Return none."""
        return {}

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Forget the alias."""


class Triton:
    """A server of this run's own, in `home`."""

    def __init__(self, home: Path) -> None:
        ports = []
        for _ in range(3):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        os.environ["FLYWEIGHT_TRITON_HOME"] = os.environ.get("FLYWEIGHT_TRITON_HOME", str(places.triton()))
        os.environ["FLYWEIGHT_HOME"] = str(home / "home")
        os.environ["FLYWEIGHT_TRITON_REPOSITORY"] = str(home / "triton_repo")
        os.environ["FLYWEIGHT_TRITON_GRPC"] = f"127.0.0.1:{ports[0]}"
        (home / "triton_repo").mkdir()
        (home / "home").mkdir()
        install()
        grpc, http, metrics = ports
        line, environment = command(home / "triton_repo", grpc_port=grpc, http_port=http, metrics_port=metrics)
        with (home / "triton.log").open("wb") as log:
            self.process = psutil.Popen(line, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        with Client(timeout=1) as client:
            while not client.live():
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise SystemExit((home / "triton.log").read_text()[-3000:])
                time.sleep(0.05)

    def size(self) -> tuple[float, int, int]:
        """Return (resident MB of the server and its stubs, threads of the server, stubs)."""
        stubs = self.process.children()
        total = sum(process.memory_info().rss for process in (self.process, *stubs))
        return total / 1e6, self.process.num_threads(), len(stubs)

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except psutil.TimeoutExpired:
            self.process.kill()


def clients(number: int, threads: int, expected: dict[int, np.ndarray], ready: Any, stop: Any, out: Any) -> None:
    """A process of closed-loop clients; puts (times, latencies, versions, failures, wrong) into `out` when told to stop."""
    asked = images(16)
    seen: list[tuple[float, float, int]] = []
    failures: list[str] = []
    wrong = [0] * threads

    def ask(thread: int) -> None:
        turn = number * threads + thread
        with Client() as client:
            while not stop.is_set():
                row = turn % len(asked)
                turn += 1
                begin = time.time()
                try:
                    answer = client.infer(MODEL, {"image": asked[row : row + 1]})
                except TritonError as error:
                    failures.append(str(error))
                    continue
                seen.append((begin, time.time() - begin, answer.version))
                known = expected.get(answer.version)
                wrong[thread] += known is None or not np.array_equal(answer.outputs["logits"][0], known[row])

    running = [threading.Thread(target=ask, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    while not seen:
        time.sleep(0.01)
    ready.release()
    for thread in running:
        thread.join()
    out.put((np.array(seen), failures, sum(wrong)))


def swap_test(directory: Path, promotions: int, concurrency: int, processes: int = 2) -> dict[str, Any]:
    """Promote and roll back `promotions` times each under `concurrency` clients and return what they met."""
    wares = [artifact(directory, seed) for seed in range(promotions + 1)]
    answers = {version: OnnxRunner(ware.onnx)({"image": images(16)})["logits"] for version, ware in enumerate(wares, 1)}
    config = Promote(observe_s=1.0, probes=50, max_drift=1.0, max_p99_ratio=1e6)
    settings = Serving(model=MODEL, max_batch_size=16, instances=1)
    registry, windows, warm = Counting(), [], []
    spawn = multiprocessing.get_context("spawn")
    ready, stop, out = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    with Client() as control:

        def promote(ware: Artifact) -> None:
            demanded = Golden({"image": images(16)}, OnnxRunner(ware.onnx)({"image": images(16)}))
            promote_artifact(settings, ware, demanded, registry, {}, control, config)

        promote(wares[0])
        share = concurrency // processes
        generators = [
            spawn.Process(target=clients, args=(n, share, answers, ready, stop, out)) for n in range(processes)
        ]
        for generator in generators:
            generator.start()
        for _ in generators:
            ready.acquire()
        steady = timed(lambda: time.sleep(4.0))
        for ware in wares[1:]:
            windows.append(("promotion", *timed(lambda ware=ware: promote(ware))))
            time.sleep(0.5)
            windows.append(("rollback", *timed(lambda: rollback(MODEL, control))))
            warm.append(1e3 * (windows[-1][2] - windows[-1][1]))
            time.sleep(0.5)
        stop.set()
        met = [out.get() for _ in generators]
        for generator in generators:
            generator.join()
        gc(MODEL, control)
        remove_models(control, MODEL)
    seen = np.concatenate([part[0] for part in met])
    failures = [text for part in met for text in part[1]]

    def p99(*spans: tuple[float, float]) -> float:
        inside = np.zeros(len(seen), bool)
        for begin, end in spans:
            inside |= (seen[:, 0] + seen[:, 1] >= begin) & (seen[:, 0] <= end)
        return round(1e3 * float(np.quantile(seen[inside, 1], 0.99)), 2) if inside.any() else float("nan")

    return {
        "promotions": promotions,
        "rollbacks": len(warm),
        "clients": share * processes,
        "requests": len(seen) + len(failures),
        "failed": len(failures),
        "first_failures": failures[:3],
        "wrong": sum(part[2] for part in met),
        "versions_seen": sorted({int(version) for version in seen[:, 2]}),
        "p99_ms_steady": p99(steady),
        "p99_ms_during_promotions": p99(*[window[1:] for window in windows if window[0] == "promotion"]),
        "p99_ms_during_rollbacks": p99(*[window[1:] for window in windows if window[0] == "rollback"]),
        "max_ms": round(1e3 * float(seen[:, 1].max()), 2),
        "rollback_ms_median": round(float(np.median(warm)), 2),
        "rollback_ms_max": round(max(warm), 2),
        "rollback_limit_ms": LIMIT_MS,
    }


def timed(work: Any) -> tuple[float, float]:
    """Do `work`; return when it began and ended."""
    begin = time.time()
    work()
    return begin, time.time()


def memory_test(server: Triton, directory: Path, swaps: int) -> dict[str, Any]:
    """Swap `swaps` times, then load models that stay; return the sizes after each and whether they are flat."""
    wares = [artifact(directory, 1000 + seed) for seed in range(2)]
    settings = Serving(model="memory", max_batch_size=16, instances=1)
    config = Promote(observe_s=0.0, probes=5, max_drift=1.0, max_p99_ratio=1e6)
    registry = Counting()
    registry.version_with_sha = lambda name, sha256: None  # type: ignore[method-assign]  # each swap is a new version
    with Client() as control:

        def swap(number: int) -> None:
            ware = wares[number % 2]
            demanded = Golden({"image": images(16)}, OnnxRunner(ware.onnx)({"image": images(16)}))
            promote_artifact(settings, ware, demanded, registry, {}, control, config)

        def leave(number: int) -> None:
            """As a swap that forgets to unload its candidate would."""
            name = f"left_{number}"
            with disk.scratch() as room:
                repository.write_model(room / name, wares[0], settings, 1)
                disk.rename(room / name, places.triton_repository() / name)
            control.load(name, 60.0)

        found = {
            "swaps": sizes(server, swap, swaps),
            "control": sizes(server, leave, max(8, swaps // 4)),
            "bound": BOUND,
        }
        remove_models(control, "memory")
        remove_models(control, "left_")
    return found


def sizes(server: Triton, work: Callable[[int], None], count: int) -> dict[str, Any]:
    """Do `work` `count` times and return the server's size after each, and whether it is flat."""
    seen = []
    for number in range(count):
        work(number)
        seen.append(server.size())
    resident, threads, stubs = (list(column) for column in zip(*seen, strict=True))
    return {
        "count": count,
        "resident_mb": [round(size, 1) for size in resident],
        "threads": threads,
        "stubs": stubs,
        "flat": flat(resident) and flat(threads),
    }


def flat(sizes: Sequence[float]) -> bool:
    """Return whether the last quarter is not above the quarter before the middle by more than BOUND, each by its median."""
    quarter = max(1, len(sizes) // 4)
    middle = len(sizes) // 2
    before, after = np.median(sizes[middle - quarter : middle]), np.median(sizes[-quarter:])
    return bool(after <= before * (1 + BOUND))


def main(arguments: Sequence[str]) -> int:
    """Run both tests and print what they found; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--promotions", type=int, default=20, help="and as many rollbacks")
    parser.add_argument("--clients", type=int, default=16, help="closed-loop clients")
    parser.add_argument("--swaps", type=int, default=50, help="swaps of the memory test; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended too
    with tempfile.TemporaryDirectory(prefix="flyweight-swap-") as name:
        server = Triton(Path(name))
        try:
            found: dict[str, Any] = {"machine": f"{platform.machine()}, {cores()} cores"}
            found |= {"swap": swap_test(Path(name), chosen.promotions, chosen.clients)}
            if chosen.swaps:
                found["memory"] = memory_test(server, Path(name), chosen.swaps)
        finally:
            server.stop()
    print(json.dumps(found, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    swap, memory = found["swap"], found.get("memory")
    kept = swap["failed"] == swap["wrong"] == 0
    if memory:
        kept = kept and memory["swaps"]["flat"] and not memory["control"]["flat"]
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
