"""What a test on live requests costs the champion's requests.

    python benchmarks/canary.py [--rounds 5] [--seconds 3] [--share 0.05] [--json FILE]

Starts a Triton of its own. In turns, a few rounds of them, the same load is put on

- none: the champion with a model.py from which the mechanism has been cut out,
- idle: the champion as it is, while nobody wants its requests,
- canary, shadow: the champion while a candidate of the same size is tried on a share of its requests.

The load is a closed loop of 16 requests in flight (throughput), and then Poisson arrivals at half of the throughput that
"none" had in the same round (p99, from when a request was due). What is told is each figure's median over the rounds, and
the median of its ratio to "none" in the same round, with the smallest and the largest one. The promoter that tries the
candidate, the candidate, the baseline and the load generator share the machine's cores with the champion.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from swap import Counting, Triton, artifact, images

from pipeline.errors import PromotionError
from pipeline.machine.cpu import cores
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.load.measure import run
from pipeline.serving.load.result import Closed, Open
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.triton import repository
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.golden import Golden
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.serving import Promote, Serving

CONDITIONS = ("none", "idle", "canary", "shadow")
IN_FLIGHT = 16
QUIET = Promote(observe_s=0.0, probes=20, max_drift=1.0, max_p99_ratio=1e6, live_requests=10**9, live_max_other=1.0)
"""Never passes, so that the test on live requests lasts as long as it may."""
CUT_OUT = (
    "        if self.sampler.share:\n            return self._sampled(requests)\n",
    "        self.sampler = Sampler(\n",
)


class Bench:
    """A server with the champion, once as it is and once without the mechanism.

    Args:
        directory: for files.
        control: the server.
        seconds: of each load.
        share: of the live requests.
    """

    def __init__(self, directory: Path, control: Client, seconds: float, share: float) -> None:
        self._control, self._seconds, self._share = control, seconds, share
        self._registry = Counting()
        self._candidate = artifact(directory, 1)
        self._champion = artifact(directory, 0)
        self._promote("proxy", self._champion, QUIET)
        cut = directory / repository.BACKEND.name
        cut.write_text(_without(repository.BACKEND.read_text(encoding="utf-8")), encoding="utf-8")
        whole, repository.BACKEND = repository.BACKEND, cut
        self._registry = Counting()
        self._promote("bare", self._champion, QUIET)
        repository.BACKEND, self._registry = whole, Counting()
        self._registry.shas = [self._champion.sha256]

    def measure(self, condition: str, rate: float | None) -> dict[str, float]:
        """Return throughput in a closed loop, and p50 and p99 at `rate`, half of the throughput where it is None."""
        model = "bare" if condition == "none" else "proxy"
        trying = self._trying(condition) if condition in {"canary", "shadow"} else contextlib.nullcontext()
        with trying:
            inputs = {"image": images(16)}
            closed = run(model, "", inputs, Closed(IN_FLIGHT), self._seconds, processes=1)
            at_half = Open(round(rate or closed.throughput / 2))
            opened = run(model, "", inputs, at_half, self._seconds, processes=1)
        return {
            "throughput": round(closed.throughput, 1),
            "closed_p99_ms": round(closed.p99_ms, 3),
            "rate": at_half.rate,
            "p50_ms": round(opened.p50_ms, 3),
            "p99_ms": round(opened.p99_ms, 3),
            "failures": closed.failures + opened.failures,
        }

    @contextlib.contextmanager
    def _trying(self, kind: str) -> Iterator[None]:
        """A candidate is tried on live requests while the block runs; a trickle of requests is there before and after."""
        config = QUIET.model_copy(
            update={"live_test": kind, "live_share": self._share, "live_s": 2 * self._seconds + 6.0}
        )
        promoting = threading.Thread(target=self._withdrawn, args=(config,))
        promoting.start()
        with Client() as client:
            while not self._tried(client):
                client.infer("proxy", {"image": images(1)})
                time.sleep(0.01)
        yield
        promoting.join()

    def _tried(self, client: Client) -> bool:
        """Whether a live request has come to the baseline."""
        try:
            return any(count.answered for count in client.served("proxy__cand_base").values())
        except TritonError:  # not loaded yet
            return False

    def _withdrawn(self, config: Promote) -> None:
        try:
            self._promote("proxy", self._candidate, config)
        except PromotionError as error:
            if "undecided" not in str(error):
                raise

    def _promote(self, model: str, ware: Artifact, config: Promote) -> None:
        demanded = Golden({"image": images(16)}, OnnxRunner(ware.onnx)({"image": images(16)}))
        settings = Serving(model=model, max_batch_size=16, instances=1)
        with Client() as control:
            promote_artifact(settings, ware, demanded, self._registry, {}, control, config)


def _without(source: str) -> str:
    """Return model.py without the mechanism."""
    asks, makes = CUT_OUT
    if asks not in source or makes not in source:
        raise SystemExit("model.py has changed: say in CUT_OUT what the mechanism is")
    before, _, after = source.replace(asks, "").partition(makes)
    return before + after.partition("        )\n")[2]


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 where a request failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--share", type=float, default=0.05, help="of the live requests that is tried")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="flyweight-canary-") as name:
        server = Triton(Path(name))
        try:
            with Client() as control:
                bench = Bench(Path(name), control, chosen.seconds, chosen.share)
                rounds = []
                for number in range(chosen.rounds):
                    seen: dict[str, dict[str, float]] = {}
                    order = [*CONDITIONS[1:]] if number % 2 else [*CONDITIONS[:0:-1]]
                    for condition in ("none", *order):
                        rate = seen["none"]["rate"] if seen else None
                        seen[condition] = bench.measure(condition, rate)
                        print(number, condition, seen[condition], file=sys.stderr, flush=True)
                    rounds.append(seen)
        finally:
            server.stop()
    found = {
        "machine": f"{platform.machine()}, {cores()} cores",
        "share": chosen.share,
        "seconds": chosen.seconds,
        "summary": summary(rounds),
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in found.items() if key != "rounds"}, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(seen["failures"] for turn in rounds for seen in turn.values()))


def summary(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return for each condition each figure's median, and the median, smallest and largest ratio to "none"."""
    found: dict[str, Any] = {}
    for condition in CONDITIONS:
        found[condition] = {"failures": sum(turn[condition]["failures"] for turn in rounds)}
        for figure in ("throughput", "p50_ms", "p99_ms"):
            values = [turn[condition][figure] for turn in rounds]
            ratios = [turn[condition][figure] / turn["none"][figure] for turn in rounds]
            found[condition][figure] = round(float(np.median(values)), 3)
            found[condition][f"{figure}_ratio"] = [
                round(float(value), 3) for value in (np.median(ratios), min(ratios), max(ratios))
            ]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
