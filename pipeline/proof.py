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
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline import cpu
from pipeline.cpu import Cpu
from pipeline.errors import ModelError
from pipeline.runners import OnnxRunner, session_options
from pipeline.timing import time_runners
from pipeline.types import Metrics

BATCH = 32
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


class Proof(BaseModel):
    """What was counted and timed of an int8 file beside its float original, on one thread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fused_integer_ops: int
    float_ops_left: int
    batch: int
    """Images a call."""
    float_images_per_second: float
    int8_images_per_second: float
    ratio: float
    """int8 over float."""
    faster: bool
    cpu: Cpu
    sentence: str


def prove(float_file: Path, int8_file: Path, images: NDArray[np.uint8], seconds: float = 0.5) -> Proof:
    """Count the operators of `int8_file` and time it against `float_file`, in turns, on one thread of this machine.

    It is the thread's own CPU time that counts, so that other tasks on the machine disturb little.

    Args:
        float_file: takes ``image``, raw pixels.
        int8_file: the same model, quantized.
        images: real ones, (N, C, H, W) uint8.
        seconds: least time of each timing.

    Raises:
        ModelError: ONNX Runtime cannot load one of the files.
    """
    counted = count_operators(int8_file)
    runners = {"float": OnnxRunner(float_file), "int8": OnnxRunner(int8_file)}
    timed = time_runners(runners, images, BATCH, seconds, time.thread_time)
    for runner in runners.values():
        runner.close()
    speed = {name: offline.images_per_second for name, offline in timed.items()}
    integer, left = int(counted["fused_integer_ops"]), int(counted["float_ops_left"])
    ratio, here = speed["int8"] / speed["float"], cpu.describe()
    return Proof(
        fused_integer_ops=integer,
        float_ops_left=left,
        batch=BATCH,
        float_images_per_second=speed["float"],
        int8_images_per_second=speed["int8"],
        ratio=ratio,
        faster=ratio > 1.0,
        cpu=here,
        sentence=_sentence(ratio, integer, left, here),
    )


def count_operators(file: Path) -> Metrics:
    """Count the operators of the graph that ONNX Runtime makes of `file` on this CPU.

    Returns ``fused_integer_ops``, ``float_ops_left`` and ``layout_ops_left``. Raises `ModelError`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        options = session_options(optimized_model_filepath=str(optimised))
        try:
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            raise ModelError(f"ONNX Runtime cannot load {file}: {error}") from error
        counts = collections.Counter(node.op_type for node in onnx.load(optimised).graph.node)
    return {
        "fused_integer_ops": float(sum(counts[name] for name in INTEGER_OPERATORS)),
        "float_ops_left": float(sum(counts[name] for name in FLOAT_OPERATORS)),
        "layout_ops_left": float(counts["Transpose"] + counts["Reshape"] + counts["Flatten"]),
    }


def _sentence(ratio: float, integer: int, left: int, here: Cpu) -> str:
    operators = f"{integer} operators run as integers, {left} as float"
    where = f"{here.model} ({', '.join(here.flags) or 'no integer instructions known'}), one thread, batch {BATCH}"
    if ratio > 1.0:
        return f"int8 runs {ratio:.2f}x as fast as float on {where}; {operators}."
    return f"int8 is not faster than float here: {ratio:.2f}x on {where}; {operators}. Take the float candidate."
