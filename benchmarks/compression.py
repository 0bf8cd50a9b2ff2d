"""What each way of making a network smaller costs and brings: accuracy over seeds, size, work and speed, in one run.

    python -m dvc repro prepare@fashion_mnist
    python benchmarks/compression.py [--seeds 17 18 19] [--work DIR] [--out benchmarks/results/compression]

One teacher (`TEACHER`); for each seed a student, and from it every pruner, every quantizer and chains of them, by the very
stages that the DAG runs. Beside them, on the same float files and calibration images: ONNX Runtime's own static quantization
with its defaults, NNCF's quantization of ONNX files (in an environment of its own) and torch-pruning used plainly. The
test images are looked at once, at the end; then all files take turns on one thread, and what is timed is the thread's own
CPU time, so that other work on the machine disturbs little. Writes OUT.md, OUT.json and OUT.png.

It takes more than an hour on 2 cores. What is finished stays in DIR: a run that was killed goes on from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compression_peers as peers
import compression_report
import torch
from compression_report import Measured
from torch import nn

from pipeline.compression.quantization.calibration_set import calibration_images
from pipeline.compression.quantization.choice import answered_right
from pipeline.data.split import open_split
from pipeline.evaluation.intervals import mcnemar
from pipeline.export import onnx_graph
from pipeline.machine import places
from pipeline.machine.cpu import cores
from pipeline.models import checkpoint, size
from pipeline.models.spec import load_spec
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.runners.timing import time_runners
from pipeline.settings.base import Component
from pipeline.settings.compression import Prune, Quantize
from pipeline.settings.training import Distill, Distributed, Finetune, Fit, Train
from pipeline.stages.distill import distill
from pipeline.stages.prune import prune
from pipeline.stages.quantize import quantize
from pipeline.stages.train import train

BATCHES = (1, 32, 64)
CALIBRATION = 2048
"""Images; a quarter of them tells `mixed` what a layer costs."""


def _fit(epochs: int, lr: float) -> Fit:
    """Images as they are: the teacher then answers about each of them once, for all that learn from it."""
    return Fit(epochs=epochs, batch_size=128, lr=lr, schedule="onecycle", crop_padding=0, horizontal_flip=False)


TEACHER = Train(model=Component(name="resnet", width=64, blocks=[1, 1, 1]), fit=_fit(3, 0.1))
STUDENT = Component(name="resnet", width=32, blocks=[1, 1, 1], stem_stride=2)
STUDENT_FIT = _fit(6, 0.1)
RECOVERY = _fit(2, 0.05)
WIDE_RECOVERY = _fit(1, 0.02)
KD = Component(name="kd", temperature=4.0, alpha=0.9)
LABELS = Component(name="kd", temperature=1.0, alpha=0.0)
"""Distillation with no weight on the teacher: cross-entropy."""
HALF = Component(name="channel", keep_macs=0.5, round_to=8)
EVENLY = Component(name="channel", keep_macs=0.5, round_to=8, scope="local")
QUARTER = Component(name="channel", keep_macs=0.25, round_to=8)
PRUNERS: dict[str, dict[str, Any]] = {
    "prune 2x": {"pruner": HALF},
    "prune 2x, labels": {"pruner": HALF, "loss": LABELS},
    "prune 2x evenly, labels": {"pruner": EVENLY, "loss": LABELS},
    "prune 4x": {"pruner": QUARTER},
    "low rank": {"pruner": Component(name="low_rank", keep_macs=0.6)},
    "low rank + prune": {
        "pruner": Component(name="low_rank", keep_macs=0.75),
        "then": (Component(name="channel", keep_macs=0.67, round_to=8),),
    },
    "depth": {"pruner": Component(name="depth", drop=1)},
    "unstructured 50 %": {"pruner": Component(name="unstructured", sparsity=0.5)},
    "2:4": {"pruner": Component(name="n_m", n=2, m=4)},
    "torch-pruning 2x": {
        "pruner": Component(name="compression_peers:PlainTorchPruning", keep_macs=0.5),
        "loss": LABELS,
    },
}
QUANTIZERS = {
    "int8": Component(name="static"),
    "int8 percentile": Component(name="static", calibration="percentile"),
    "int8 entropy": Component(name="static", calibration="entropy"),
    "mixed": Component(name="mixed", max_disagreement=0.005),
    "dynamic": Component(name="dynamic"),
    "fp16": Component(name="fp16"),
}
"""int4 is left out: it packs the weights of matrix products, of which these networks have none worth packing."""
INT8 = [
    *("teacher", "teacher + prune", "student", "prune 2x", "prune 4x", "low rank", "low rank + prune", "depth"),
    *("prune 2x, labels", "prune 2x, no recovery", "qat + prune 2x", "qat + prune 2x, no recovery"),
]
"""Networks whose int8 file is measured too."""
FORMS = [(name, "int8") for name in INT8] + [
    *(("student", form) for form in QUANTIZERS if form != "int8"),
    ("prune 2x", "mixed"),
]
QAT = Quantize(
    targets=("cpu",),
    calibration_images=CALIBRATION,
    loss=KD,
    fit=Finetune(**{**_fit(1, 0.001).model_dump(), "amp": "off"}),
)


@dataclass(frozen=True)
class Run:
    """One seed's share of the benchmark."""

    seed: int
    work: Path
    teacher: Path

    @property
    def data(self) -> Path:
        """The prepared data set."""
        return places.data("fashion_mnist")

    def stage(self, name: str, function: Callable[..., Any], config: Any, **inputs: Path) -> Path:
        """Run a stage, unless it has run already, and return where its results are."""
        out = self.work / f"{self.seed}" / "networks" / name
        done = out / ".done"
        if not done.exists():
            begun = time.monotonic()
            out.mkdir(parents=True, exist_ok=True)
            function(
                config, data=self.data, distributed=Distributed(), seed=self.seed,
                out=out, scratch=self.scratch(name), **inputs,
            )  # fmt: skip
            done.touch()
            print(f"seed {self.seed}: {name}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        return out

    def scratch(self, name: str) -> Path:
        """Where a stage of this name keeps what it resumes from."""
        return self.work / f"{self.seed}" / "scratch" / name

    def pruned(self, name: str, student: Path, fit: Fit = RECOVERY, **settings: Any) -> Path:
        """Prune and recover `student`."""
        return self.stage(
            name, prune, Prune(**{"loss": KD, **settings}, fit=fit), teacher=self.teacher, student=student
        )

    def networks(self) -> dict[str, Path]:
        """Every checkpoint by name."""
        student = self.stage("student", distill, Distill(model=STUDENT, loss=KD, fit=STUDENT_FIT), teacher=self.teacher)
        found = {
            "teacher": self.teacher,
            "student": student,
            "student alone": self.stage("student alone", train, Train(model=STUDENT, fit=STUDENT_FIT)),
            "teacher + prune": self.pruned(
                "teacher + prune",
                self.teacher,
                WIDE_RECOVERY,
                pruner=Component(name="channel", keep_macs=0.4, round_to=16),
            ),
        }
        found |= {name: self.pruned(name, student, **settings) for name, settings in PRUNERS.items()}
        found["prune 2x, no recovery"] = self.scratch("prune 2x") / "pruned0"
        rounding = self.stage("student + qat", quantize, QAT, teacher=self.teacher, pruned=student) / "qat"
        unfolded = self.scratch("unfolded")
        unfold(rounding, unfolded)
        found["qat + prune 2x"] = self.pruned("qat + prune 2x", unfolded, pruner=HALF)
        found["qat + prune 2x, no recovery"] = self.scratch("qat + prune 2x") / "pruned0"
        return found

    def files(self) -> dict[str, Measured]:
        """Every ONNX file by the name of what was done, with the size of its network; accuracy and speed come later."""
        networks, made = self.networks(), dict[str, Measured]()
        images, _ = calibration_images(self.data, CALIBRATION, load_spec(self.teacher).image_shape, self.seed)
        folder = self.work / f"{self.seed}" / "files"
        folder.mkdir(parents=True, exist_ok=True)
        for name, directory in networks.items():
            spec, network = checkpoint.load(directory)
            file = folder / f"{name}.onnx"
            onnx_graph.export(spec, network, file)
            made[name] = Measured.of(file, self.seed, size.macs(network, spec.image_shape), size.parameters(network))
        for name, form in FORMS:
            file = folder / f"{name} + {form}.onnx"
            QUANTIZERS[form].build("quantizers")(made[name].file, images, file, "cpu")
            made[f"{name} + {form}"] = made[name].with_file(file)
        for name, quantizer in peers.quantizers(self.work).items():
            for network in ("teacher", "student"):
                file = folder / f"{network} + {name}.onnx"
                quantizer(made[network].file, images, file)
                made[f"{network} + {name}"] = made[network].with_file(file)
        for name in ("student", "prune 2x"):
            trained = self.stage(f"{name} + qat", quantize, QAT, teacher=self.teacher, pruned=networks[name])
            record = json.loads((trained / "quantization.json").read_text(encoding="utf-8"))["training"]
            made[f"{name} + qat"] = made[name].with_file(trained / "cpu" / "model.onnx", record)
        return made


def unfold(folded: Path, out: Path) -> None:
    """Write the checkpoint `folded` with batch norms again, which add the biases and do nothing else: pruners need them."""
    spec, network = checkpoint.load(folded)
    plain = spec.model_copy(update={"folded": {}})
    fresh = checkpoint.build(plain)
    weights = network.state_dict()
    biases = {norm: weights.pop(f"{convolution}.bias") for norm, convolution in spec.folded.items()}
    fresh.load_state_dict(weights, strict=False)
    with torch.no_grad():
        for name, bias in biases.items():
            norm = fresh.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            norm.weight.fill_((1.0 + norm.eps) ** 0.5)  # a fresh norm has a variance of one
            norm.bias.copy_(bias)
    checkpoint.save(out, plain, fresh)


def main() -> None:
    """Train, quantize, then evaluate and time everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--work", type=Path, default=places.home() / "benchmarks" / "compression")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compression")
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of each timing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    teacher = Run(arguments.seeds[0], arguments.work / "teacher", Path()).stage("teacher", train, TEACHER)
    runs = [Run(seed, arguments.work, teacher) for seed in arguments.seeds]
    for run in runs:  # first what takes long, so that a run that was killed does not make files twice
        run.networks()
    made = {run.seed: run.files() for run in runs}
    test = open_split(runs[0].data, "test")
    with ThreadPoolExecutor(cores()) as pool:
        for files in made.values():
            right = dict(zip(files, pool.map(lambda one: answered_right(one.file, test), files.values()), strict=True))
            for name, one in files.items():
                one.accuracy = float(right[name].mean())
                network, _, form = name.partition(" + ")
                if form in peers.NAMES:
                    one.chance = mcnemar(right[f"{network} + int8"], right[name])
    images = open_split(runs[0].data, "validation").slice(0, max(BATCHES))
    for files in made.values():
        runners = {name: OnnxRunner(one.file) for name, one in files.items()}
        for batch in BATCHES:
            for name, timed in time_runners(runners, images, batch, arguments.seconds, time.thread_time).items():
                files[name].images_per_second[batch] = timed.images_per_second
        for runner in runners.values():
            runner.close()
    compression_report.write(arguments.out, made)


if __name__ == "__main__":
    main()
