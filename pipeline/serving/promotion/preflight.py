"""The first look at a staged model: its golden answers in a process of its own, with a deadline.

A file that crashes ONNX Runtime, hangs or eats the machine's memory must not take the promoter with it, let alone the
server. The child is ``python -m pipeline.serving.promotion.preflight MODEL GOLDEN ANSWERS THREADS``; it imports little.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pipeline.errors import PromotionError
from pipeline.machine import workspace

_TAIL_LINES = 3


def answers(onnx: Path, inputs: Mapping[str, NDArray], threads: int, timeout: float) -> dict[str, NDArray]:
    """Return what the ONNX file answers to `inputs` in ONNX Runtime in another process.

    Args:
        onnx: the model.
        inputs: batched arrays by name.
        threads: of the session.
        timeout: longest that loading and answering may take, in seconds.

    Raises:
        PromotionError: it cannot be loaded, fails, crashes its process or is not done in time.
    """
    with tempfile.TemporaryDirectory(prefix="flyweight-preflight-") as name:
        asked, answered = Path(name) / "asked.safetensors", Path(name) / "answered.safetensors"
        save_file({key: np.ascontiguousarray(array) for key, array in inputs.items()}, asked)
        command = [
            sys.executable,
            "-m",
            "pipeline.serving.promotion.preflight",
            *map(str, (onnx, asked, answered, threads)),
        ]
        path = os.pathsep.join([str(workspace.SOURCE), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise PromotionError(
                f"preflight: the model had not answered its golden inputs after promote.preflight_timeout_s = {timeout:g} s"
            ) from error
        if done.returncode != 0:
            how = f" (ended by {signal.Signals(-done.returncode).name})" if done.returncode < 0 else ""
            said = " ".join(done.stderr.strip().splitlines()[-_TAIL_LINES:]) or "it said nothing"
            raise PromotionError(f"preflight: ONNX Runtime cannot run the model{how}: {said}")
        return load_file(answered)


def main(onnx: Path, asked: Path, answered: Path, threads: int) -> None:
    """Answer the inputs in `asked` and write the outputs to `answered`."""
    import onnxruntime

    from pipeline.runners.onnx_runner import session_options

    session = onnxruntime.InferenceSession(str(onnx), session_options(threads), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = load_file(asked)
    for tensor in session.get_inputs():  # what has no axis of its own has one of length 1 for Triton and its clients
        feed[tensor.name] = feed[tensor.name].reshape(feed[tensor.name].shape[: len(tensor.shape)])
    outputs = session.run(names, feed)
    save_file({name: np.ascontiguousarray(array) for name, array in zip(names, outputs, strict=True)}, answered)


if __name__ == "__main__":
    model, asked_file, answered_file, count = sys.argv[1:]
    try:
        main(Path(model), Path(asked_file), Path(answered_file), int(count))
    except Exception as error:  # whatever it is, the promoter gets it in one line
        sys.exit(f"{type(error).__name__}: {error}")
