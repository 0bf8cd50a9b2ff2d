"""Which form of int8 is fast in ONNX Runtime on this CPU? The same networks, quantized in four ways, beside float.

    python benchmarks/int8_forms.py [--widths 32 16 12 8] [--seconds 2]

Weights are random: speeds, operators and bytes are real, accuracy is not looked at but for the error of the logits.
Prints a Markdown table. All forms of a network take turns on one thread, and what is timed is the
thread's own CPU time, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from pipeline.compression.quantization.quantizers.static import Static
from pipeline.export import onnx_graph
from pipeline.machine import cpu
from pipeline.models.checkpoint import build
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.timing import time_runners

BATCHES = (1, 16, 64)


class Reader(CalibrationDataReader):
    """Raw images in batches of 32, as ONNX Runtime's own quantizer wants them."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter([{"image": images[at : at + 32]} for at in range(0, len(images), 32)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None after the last."""
        return next(self.batches, None)


def network_file(width: int, directory: Path) -> Path:
    """A ResNet of three blocks for 28 x 28 grey images, with batch norms that do something."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(mean=(0.286,), std=(0.353,))
    spec = image_classifier(
        "resnet", {"width": width, "blocks": [1, 1, 1]}, (1, 28, 28), tuple("0123456789"), preprocessing
    )
    network = build(spec)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    onnx_graph.export(spec, network, directory / "float.onnx")
    return directory / "float.onnx"


def plain(file: Path, images: np.ndarray, out: Path, **options: object) -> None:
    """ONNX Runtime's quantizer on the whole file."""
    quantize_static(str(file), str(out), Reader(images), **options)


def forms(file: Path, images: np.ndarray, directory: Path) -> dict[str, Path]:
    """Every form of the network in `file`."""
    made = {name: directory / f"{name}.onnx" for name in ("defaults", "u8s8", "integer", "folded")}
    plain(file, images, made["defaults"])
    plain(
        file, images, made["u8s8"], quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    Static(fold="off")(file, images, made["integer"], "cpu")
    Static(fold="on")(file, images, made["folded"], "cpu")
    return {"float": file, **made}


def operators(file: Path) -> str:
    """Integer and float kernels in the graph that ONNX Runtime makes of the file."""
    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{scratch}/optimised.onnx"
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        counts = collections.Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    integer = sum(count for name, count in counts.items() if name.startswith("QLinear") or name == "QGemm")
    return f"{integer} of {sum(counts.values())}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 16, 12, 8])
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of each timing")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, 1, 28, 28)).astype(np.uint8) * (rng.random((128, 1, 28, 28)) > 0.4)
    images = images.astype(np.uint8)
    print(
        f"{cpu.describe().model}, {', '.join(cpu.describe().flags)}; onnxruntime {onnxruntime.__version__}, 1 thread\n"
    )
    print(
        "| width | form | integer kernels | bytes | error | " + " | ".join(f"images/s at {b}" for b in BATCHES) + " |"
    )
    print("|---|---|---|---|---|" + "---|" * len(BATCHES))
    for width in arguments.widths:
        with tempfile.TemporaryDirectory() as scratch:
            files = forms(network_file(width, Path(scratch)), images, Path(scratch))
            runners = {name: OnnxRunner(file) for name, file in files.items()}
            expected = runners["float"]({"image": images})["logits"]
            timed = [time_runners(runners, images, batch, arguments.seconds, time.thread_time) for batch in BATCHES]
            for name, file in files.items():
                error = np.abs(runners[name]({"image": images})["logits"] - expected).max() / np.abs(expected).max()
                speeds = [
                    f"{found[name].images_per_second:,.0f} ({found[name].images_per_second / found['float'].images_per_second:.2f}x)"
                    for found in timed
                ]
                cells = [str(width), name, operators(file), f"{file.stat().st_size:,}", f"{error:.1%}", *speeds]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
