"""Bringing disk and server back to what the ledger says, whatever an interrupted change or a foreign hand has left.

Every promotion begins with it and `reconcile` is built on it, so there is one way in which things are repaired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import PromotionError
from pipeline.machine import places
from pipeline.serving.promotion.change import RESTART, Change, stray_text, strays
from pipeline.serving.promotion.ledger import REPAIRED
from pipeline.serving.promotion.relay import socket_path
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.control import busy, is_reachable
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.temporary import remove_models


@dataclass(frozen=True)
class Finding:
    """Something that was not as it should be."""

    what: str
    advice: str = ""
    """What a person must do; empty where it has been repaired."""
    blocks: bool = False
    """Whether nothing can be promoted before."""

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}" if self.advice else f"{self.what} (repaired)"


def repair(change: Change) -> list[Finding]:
    """Repair what can be repaired, and return all that was found. Raises `TritonError` where the server cannot be reached."""
    found: list[Finding] = []
    for finding in _look(change):
        found.append(finding)
        change.ledger.append(REPAIRED, what=finding.what, advice=finding.advice)
        if finding.blocks:
            break
    return found


def repair_or_raise(change: Change) -> None:
    """Do what `repair` does. Raises `PromotionError` for what only a person can repair and nothing can go on without."""
    for finding in repair(change):
        if finding.blocks:
            raise PromotionError(str(finding))


def _look(change: Change) -> Iterator[Finding]:
    """Yield one finding after another, each already repaired where that is possible."""
    yield from _harmful(change)
    yield from _leftovers(change)
    version = change.ledger.serving_version()
    if version is None:
        yield from _never_verified(change)
        return
    if damage := change.damage(version):
        yield Finding(
            f"the files of {change.model} version {version}, which is to serve, are damaged: {damage}",
            "run `flyweight reconcile`, which fetches them from the registry again",
            blocks=True,
        )
    yield from _other_policy(change, version)
    yield from _other_answers(change, version)
    yield from _never_served(change, version)


def _harmful(change: Change) -> Iterator[Finding]:
    """What makes any load dangerous or vain."""
    if names := strays(change.directory):
        yield Finding(f"{change.directory} holds {', '.join(names)}", stray_text(change.directory, names), blocks=True)
    for model in (change.model, change.candidate):
        if moving := busy(change.control, model, change.load_timeout):
            said = ", ".join(f"version {version} is {state}" for version, state in moving.items())
            yield Finding(
                f"Triton does not come to an end with {model}: {said} since promote.load_timeout_s = "
                f"{change.load_timeout:g} s",
                f"its control of models is stuck, what is loaded answers on; {RESTART}",
                blocks=True,
            )


def _leftovers(change: Change) -> Iterator[Finding]:
    if disk.clear_staging(change.model):
        yield Finding(f"an interrupted promotion left files in {disk.staging() / change.model}")
    if socket_path(change.model).exists():
        socket_path(change.model).unlink()
        yield Finding(f"an interrupted promotion left its socket for live requests to {change.model}")
    for name in remove_models(change.control, change.candidate):
        yield Finding(f"an interrupted promotion left its candidate {name}")


def _never_verified(change: Change) -> Iterator[Finding]:
    """A model directory of which the ledger knows no verified version."""
    if not change.directory.exists():
        return
    there = set(repository.version_directories(change.directory))
    if not there or not there <= change.ledger.begun():
        yield Finding(
            f"{change.directory} was not put there by a promotion: {change.ledger.path} knows nothing of it",
            "move it away, or set serving.model to another name",
            blocks=True,
        )
        return
    change.withdraw()
    yield Finding(f"the first promotion of {change.model} was interrupted before its version was verified")


def _other_policy(change: Change, version: int) -> Iterator[Finding]:
    """The config on disk would let another version answer: what a restart would serve is not what was verified."""
    policy = repository.served_versions(change.directory) if _has_config(change) else ()
    if not policy or policy[-1] != version:
        was = ", ".join(map(str, policy)) or "nothing"
        yield from _attempt(
            change, version, f"the config on disk names {was} and the ledger says version {version}", reload=False
        )


def _other_answers(change: Change, version: int) -> Iterator[Finding]:
    """Triton answers with something else than what is on disk, or not at all."""
    if trouble := _trouble(change, version):
        yield from _attempt(change, version, f"{change.model}: {trouble}", reload=True)


def _attempt(change: Change, version: int, what: str, *, reload: bool) -> Iterator[Finding]:
    try:
        if reload:
            change.reload(version)
        else:
            change.revert(version)
        trouble = _trouble(change, version)
    except TritonError as error:
        if not is_reachable(change.control):
            raise
        trouble = str(error)
    yield Finding(what, f"after loading version {version} again: {trouble}. {RESTART}" if trouble else "")


def _trouble(change: Change, version: int) -> str | None:
    try:
        return change.trouble(version)
    except TritonError as error:
        if not is_reachable(change.control):
            raise
        return str(error)


def _never_served(change: Change, version: int) -> Iterator[Finding]:
    """Versions that an interrupted promotion put there and that never came to be verified."""
    known = change.ledger.has_served() | {version}
    for number, path in repository.version_directories(change.directory).items():
        if number not in known:
            disk.remove(path)
            yield Finding(f"version {number} of {change.model} was put there and never came to serve")


def _has_config(change: Change) -> bool:
    return (places.triton_repository() / change.model / repository.CONFIG_FILE).is_file()
