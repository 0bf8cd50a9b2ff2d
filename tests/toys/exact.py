"""What a quantized file answers with sums in 32 bits, whatever this CPU does.

Without VNNI, x86 sums two products of U8S8 in 16 bits, which may saturate; ONNX Runtime can be told to prefer precision.
"""

import onnxruntime

from pipeline.compression.quantization.saturation import WITH_32_BIT_SUMS
from pipeline.machine import cpu
from pipeline.runners.onnx_runner import session_options


def exact_answers(file, images):
    """The logits of the model in `file` for raw `images`."""
    options = session_options()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def sums_are_exact():
    """Whether this CPU sums products of U8S8 in 32 bits; else a small network may answer a fifth of all images otherwise."""
    return not set(WITH_32_BIT_SUMS).isdisjoint(cpu.describe().flags)
