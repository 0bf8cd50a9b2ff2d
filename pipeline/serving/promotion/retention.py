"""Removing old versions from the repository: never one that serves, is loaded, or could be gone back to."""

from __future__ import annotations

from pipeline.serving.promotion import ledger
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.repair import repair_or_raise
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.control import Control, states


def gc(model: str, control: Control, load_timeout: float = 60.0) -> dict[int, int]:
    """Remove every version of `model` that is not needed; return version -> bytes that this freed.

    Kept are the version that is to serve, the one that `rollback` would go back to, what the config names and what Triton
    has loaded. The registry keeps all of them: `flyweight promote VERSION` brings any back.

    Raises:
        PromotionError: the repository needs a person first.
        TritonError: the server cannot be reached, so that what it has loaded is not known.
        BlockingIOError: another process is changing this model.
    """
    repository.check_name(model)
    with disk.lock(model), disk.explained(model):
        change = Change(model, control, load_timeout)
        repair_or_raise(change)
        keep = needed(change)
        freed = {}
        for version, directory in sorted(repository.version_directories(change.directory).items()):
            if version not in keep:
                freed[version] = sum(path.stat().st_size for path in directory.iterdir())
                disk.remove(directory)
                change.ledger.append(ledger.REMOVED, version=version)
    return freed


def needed(change: Change) -> set[int]:
    """Return the versions that must stay on disk."""
    loaded = {
        number for number, state in states(change.control, change.model).items() if state not in {"", "UNAVAILABLE"}
    }
    keep = {*repository.served_versions(change.directory), *loaded}
    serving = change.serves()
    if serving is not None:
        keep |= {serving, change.ledger.before(serving) or serving}
    return keep
