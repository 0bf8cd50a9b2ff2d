"""What a channel less is worth: the same residual network at several widths, float, timed in turns in ONNX Runtime.

    python benchmarks/channel_widths.py [--widths 32 30 28 24 20 16] [--seconds 2]

Weights are random: speed does not depend on them. Prints a Markdown table of time against multiply-accumulates, both as a
share of the first width's: where time falls slower, the kernels compute channels that are not there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from pipeline.export import onnx_graph
from pipeline.machine import cpu
from pipeline.models.checkpoint import build
from pipeline.models.size import macs
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.timing import time_runners

SHAPE = (1, 28, 28)
BATCHES = (1, 64)


def main() -> None:
    """Time all widths and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 30, 28, 24, 20, 16])
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    runners, work = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for width in arguments.widths:
            preprocessing = Preprocessing(mean=(0.0,), std=(1.0,))
            spec = image_classifier(
                "resnet", {"width": width, "blocks": [1, 1]}, SHAPE, tuple("0123456789"), preprocessing
            )
            network = build(spec).eval()
            work[width] = macs(network, SHAPE)
            file = Path(directory) / f"{width}.onnx"
            onnx_graph.export(spec, network, file)
            runners[width] = OnnxRunner(file)
    timed = {
        batch: time_runners(runners, np.zeros((batch, *SHAPE), np.uint8), batch, arguments.seconds) for batch in BATCHES
    }
    first = arguments.widths[0]
    host = cpu.describe()
    print(f"{host.model}, {', '.join(host.flags)}; onnxruntime {onnxruntime.__version__}, 1 thread\n")
    print("| width | MACs | " + " | ".join(f"time, batch {batch}" for batch in BATCHES) + " |")
    print("|---" * (2 + len(BATCHES)) + "|")
    for width in arguments.widths:
        times = [timed[batch][width].p50_ms / timed[batch][first].p50_ms for batch in BATCHES]
        print(f"| {width} | {work[width] / work[first]:.2f} | " + " | ".join(f"{time:.2f}" for time in times) + " |")


if __name__ == "__main__":
    main()
