"""A process that promotes on request and can be killed at any step, as kill -9 does: started by test_promotion_triton.py.

It has imported everything and opened no connection, so a fork of it promotes at once. One JSON object a line on standard
input (directory, factor, model, registry, kill_at); for each the fork's exit code on standard output.
"""

import json
import os
import signal
import sys
from pathlib import Path

from serving_toys import QUICK, Registry, artifact, golden

from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.promotion import preflight
from pipeline.serving.promotion.ledger import Ledger
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.triton.client import Client
from pipeline.settings.serving import Serving


def promote(directory: str, factor: float, model: str, registry: str, kill_at: str) -> None:
    append = Ledger.append

    def fatal(self: Ledger, step: str, **what: object) -> None:
        append(self, step, **what)
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.append = fatal
    preflight.answers = lambda onnx, inputs, threads, timeout: OnnxRunner(onnx, threads)(inputs)
    what = artifact(Path(directory), factor)
    tags = {"verdict": "PROMOTE", "candidate": what.candidate}
    settings = Serving(model=model, max_batch_size=8, instances=1)
    with Client() as client:
        promote_artifact(settings, what, golden(what), Registry(Path(registry)), tags, client, QUICK)


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            promote(**json.loads(line))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
