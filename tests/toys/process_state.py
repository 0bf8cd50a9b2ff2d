"""Whether a process has ended, asked without a race."""

import psutil


def has_ended(pid: int) -> bool:
    """Whether process `pid` is gone or only waits for its parent to collect it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
