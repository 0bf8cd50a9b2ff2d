"""Going back to the version before: decided in the ledger, then done, at once while that version is still loaded."""

from __future__ import annotations

import time

from pipeline.errors import PromotionError
from pipeline.serving.promotion import ledger
from pipeline.serving.promotion.change import RESTART, Change
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.control import Control
from pipeline.serving.triton.errors import TritonError


def rollback(model: str, control: Control, load_timeout: float = 60.0) -> int:
    """Let the version before the present one serve again and return it; its caller moves the registry's alias.

    Where a promotion was interrupted before its version was verified, the present version is that one, and the one before
    it is what the ledger says. Nothing else is looked at or tidied up first: whoever rolls back is in a hurry.

    Raises:
        PromotionError: there is none to go back to, or its files are damaged.
        TritonError: the server cannot be reached or does not serve it; a restart will.
        BlockingIOError: another process is changing this model.
    """
    repository.check_name(model)
    with disk.lock(model), disk.explained(model):
        change = Change(model, control, load_timeout)
        begin = time.perf_counter()
        present, target = _target(change)
        if not change.is_ready(target) and (damage := change.damage(target)):
            raise PromotionError(f"{model} cannot be rolled back to version {target}: {damage}")
        change.ledger.append(ledger.ROLLED_BACK, version=target, previous=present)
        change.revert(target)
        if trouble := change.trouble(target):
            raise TritonError(f"{model} was asked to serve version {target} again: {trouble}. {RESTART}", "INTERNAL")
        seconds = time.perf_counter() - begin
        change.ledger.append(ledger.REVERTED, version=target, seconds=round(seconds, 4))
    return target


def _target(change: Change) -> tuple[int, int]:
    """Return (version that answers or would after a restart, version to go back to). Raises `PromotionError`."""
    version = change.ledger.serving_version()
    if version is None:
        raise PromotionError(f"{change.model} cannot be rolled back: no version of it serves by {change.ledger.path}")
    policy = repository.served_versions(change.directory)
    if policy and policy[-1] != version:
        return policy[-1], version
    previous = change.ledger.before(version)
    if previous is None or not change.version_directory(previous).is_dir():
        gone = f"the files of version {previous} are gone" if previous else f"no version served before {version}"
        raise PromotionError(
            f"{change.model} cannot be rolled back: {gone}. `flyweight promote VERSION` can go anywhere"
        )
    return version, previous
