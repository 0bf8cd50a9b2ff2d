"""One process of a training, as `launch` has torchrun start it.

Its command is ``python -m pipeline.training.distributed.worker PARENT JOB.json``.

The job file holds ``{"function": "package.module:function", "job": {...}, "backend", "meeting", "threads"}``. What goes
wrong is written, with its traceback, where torchrun asks for it. Nothing heavy is imported before the process is tied to
its parent: it must not outlive it even while it is still starting.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, job_file: Path) -> None:
    """Run the job and let errors end the process."""
    _die_with(parent)
    atexit.register(gc.freeze)  # as `pipeline.cli.main` does
    task: dict[str, Any] = json.loads(job_file.read_text(encoding="utf-8"))
    os.environ["OMP_NUM_THREADS"] = str(task["threads"])  # read when torch is imported
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_work)(task)


def _work(task: dict[str, Any]) -> None:
    from pipeline.training.distributed import ranks

    module, _, function = task["function"].partition(":")
    with ranks.joined(task["backend"], Path(f"{task['meeting']}.{os.environ['TORCHELASTIC_RESTART_COUNT']}")):
        getattr(importlib.import_module(module), function)(task["job"])


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
