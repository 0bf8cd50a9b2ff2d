"""The int8 proof: is the quantized file integer where it counts, and is it faster on this machine?

    found = prove(Path("float.onnx"), Path("int8.onnx"), images)
    print(found.sentence)

"int8" alone promises nothing: what ONNX Runtime cannot fuse runs as float between conversions, and an integer kernel
that does not suit the CPU is slower than the float one. So the operators are counted in the graph that really runs,
and both files are timed in turns.
"""

from __future__ import annotations

import collections
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.intervals import ratio
from pipeline.machine import cpu
from pipeline.machine.cpu import Cpu
from pipeline.protocols import Metrics
from pipeline.records.measures import Interval, Offline
from pipeline.runners.answer import answer
from pipeline.runners.onnx_runner import OnnxRunner, open_session, session_options
from pipeline.runners.timing import time_runners

BATCHES = (1, 32, 64)
"""Images per call."""
_CONFIDENCE = 0.95
INTEGER_OPERATORS = {
    "QLinearConv", "QLinearAdd", "QLinearMul", "QLinearMatMul", "QLinearGlobalAveragePool", "QLinearAveragePool",
    "QLinearConcat", "QLinearSigmoid", "QLinearSoftmax", "QLinearLeakyRelu", "QGemm", "MatMulIntegerToFloat",
    "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul",
}  # fmt: skip
FLOAT_OPERATORS = {
    "Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits", "Max", "Add", "Sub", "Mul", "Div", "Relu",
    "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh", "Erf", "Gelu", "Softmax", "LayerNormalization",
    "BatchNormalization", "GlobalAveragePool", "AveragePool", "MaxPool", "ReduceMean", "Cast", "QuantizeLinear",
    "DynamicQuantizeLinear",
}  # fmt: skip


class Speed(BaseModel):
    """Both files at one batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    float_images_per_second: float
    int8_images_per_second: float
    ratio: float
    """int8 over float."""
    interval: Interval
    """Where the ratio lies, at 95 %, by the turns that the two took."""


class Proof(BaseModel):
    """What was counted and timed of an int8 file beside its float original, on one thread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fused_integer_ops: int
    float_ops_left: int
    speed: dict[int, Speed]
    """By batch size."""
    pace: Literal["faster", "as fast", "slower"]
    """int8 beside float at the largest batch size, where the budget reads its speedup as well. By chance it is neither
    faster nor slower: then it is as fast."""
    agreement: float
    """Share of the images that both files answer alike."""
    cpu: Cpu
    sentence: str


def prove(float_file: Path, int8_file: Path, images: NDArray[np.uint8], seconds: float = 0.3) -> Proof:
    """Count the operators of `int8_file` and time it against `float_file`, in turns, on one thread of this machine.

    It is the thread's own CPU time that counts, so that other tasks on the machine disturb little.

    Args:
        float_file: takes ``image``, raw pixels.
        int8_file: the same model, quantized.
        images: real ones, (N, C, H, W) uint8.
        seconds: least time of each timing, of which there are two per batch size.

    Raises:
        ModelError: ONNX Runtime cannot load one of the files.
    """
    counted = count_operators(int8_file)
    runners = {"float": OnnxRunner(float_file), "int8": OnnxRunner(int8_file)}
    speed = {batch: _speed(time_runners(runners, images, batch, seconds, time.thread_time)) for batch in BATCHES}
    answers = {name: answer(runner, {"image": images})["logits"].argmax(axis=1) for name, runner in runners.items()}
    for runner in runners.values():
        runner.close()
    integer, left, here = int(counted["fused_integer_ops"]), int(counted["float_ops_left"]), cpu.describe()
    return Proof(
        fused_integer_ops=integer,
        float_ops_left=left,
        speed=speed,
        pace=_pace(speed[BATCHES[-1]].interval),
        agreement=float((answers["float"] == answers["int8"]).mean()),
        cpu=here,
        sentence=_sentence(speed, integer, left, here),
    )


def _speed(timed: Mapping[str, Offline]) -> Speed:
    before, after = timed["float"], timed["int8"]
    found = ratio(after.turns, before.turns, _CONFIDENCE)
    return Speed(
        float_images_per_second=before.images_per_second,
        int8_images_per_second=after.images_per_second,
        ratio=found.value,
        interval=Interval(low=found.low, high=found.high),
    )


def _pace(ratio: Interval) -> Literal["faster", "as fast", "slower"]:
    return "faster" if ratio.low > 1.0 else "slower" if ratio.high < 1.0 else "as fast"


def count_operators(file: Path) -> Metrics:
    """Count the operators of the graph that ONNX Runtime makes of `file` on this CPU.

    Returns ``fused_integer_ops``, ``float_ops_left`` and ``layout_ops_left``. Raises `ModelError`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        options = session_options(optimized_model_filepath=str(optimised))
        open_session(file, options)
        counts = collections.Counter(node.op_type for node in onnx.load(optimised).graph.node)
    return {
        "fused_integer_ops": float(sum(counts[name] for name in INTEGER_OPERATORS)),
        "float_ops_left": float(sum(counts[name] for name in FLOAT_OPERATORS)),
        "layout_ops_left": float(counts["Transpose"] + counts["Reshape"] + counts["Flatten"]),
    }


def _sentence(speed: Mapping[int, Speed], integer: int, left: int, here: Cpu) -> str:
    ratios = ", ".join(f"{one.ratio:.2f}x at batch {batch}" for batch, one in speed.items())
    where = f"one thread of {here.model} ({', '.join(here.flags) or 'no integer instructions known'})"
    facts = f"{ratios}, on {where}; {integer} operators run as integers, {left} as float"
    match _pace(speed[BATCHES[-1]].interval):
        case "faster":
            return f"int8 is faster than float here: {facts}."
        case "as fast":
            return f"int8 is as fast as float here, within what chance explains: {facts}."
        case "slower":
            return f"int8 is slower than float here: {facts}. Serve the float candidate."
