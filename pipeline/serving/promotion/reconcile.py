"""Comparing what should serve (ledger), what would after a restart (disk), what does (Triton) and what is said (registry).

What can be repaired is; for the rest it says what a person must do. It also ends what a killed promotion has begun: a
verified version that was not observed to the end is observed now, and the alias follows what serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PromotionError
from pipeline.files import sync
from pipeline.protocols import Registry
from pipeline.serving.promotion import ledger
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.promote import CHAMPION, finish
from pipeline.serving.promotion.pull import pull
from pipeline.serving.promotion.repair import Finding, repair
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.control import Control
from pipeline.serving.triton.golden import GOLDEN_FILE, load_golden, save_golden
from pipeline.settings.serving import Promote, Serving


@dataclass(frozen=True)
class Report:
    """What was found, and what serves now."""

    model: str
    version: int | None
    """None: nothing has been promoted, or nothing serves."""
    findings: tuple[Finding, ...]

    @property
    def needs_a_person(self) -> list[Finding]:
        """The findings that could not be repaired."""
        return [finding for finding in self.findings if finding.advice]


def reconcile(serving: Serving, registry: Registry, control: Control, config: Promote) -> Report:
    """Bring ledger, disk, Triton and registry of ``serving.model`` to agree, and report all that did not.

    Raises:
        TritonError: the server cannot be reached.
        BlockingIOError: the model is being changed right now, and what is half done is not wrong.
    """
    model = serving.model
    repository.check_name(model)
    with disk.lock(model), disk.explained(model):
        change = Change(model, control, config.load_timeout_s)
        found = [*_restore(change, serving, registry), *repair(change)]
        version = change.serves()
        if version is not None and not any(finding.advice for finding in found):
            found += _end(change, registry, config, version)
            version = change.serves()
    return Report(model, version, tuple(found))


def _restore(change: Change, serving: Serving, registry: Registry) -> list[Finding]:
    """Fetch damaged files of the version that is to serve, and of the one before it, from the registry again."""
    version = change.ledger.serving_version()
    if version is None:
        return []
    found = []
    for number in (version, change.ledger.before(version)):
        damage = change.damage(number) if number is not None else None
        if number is None or damage is None:
            continue
        if number != version and not change.version_directory(number).exists():
            continue  # it was removed on purpose
        what = f"the files of {change.model} version {number} are damaged: {damage}"
        try:
            _fetch(change, serving, registry, number)
        except PromotionError as error:
            found.append(Finding(what, f"they cannot be fetched again ({error}); promote another version"))
        else:
            found.append(Finding(what))
        change.ledger.append(ledger.REPAIRED, what=found[-1].what, advice=found[-1].advice)
    return found


def _fetch(change: Change, serving: Serving, registry: Registry, version: int) -> None:
    """Put the registered files of `version` where damaged ones are."""
    with disk.scratch() as room:
        pulled = pull(registry, change.model, version, room / "pulled")
        fresh = room / str(version)
        repository.write_version(fresh, pulled.artifact, serving, version)
        _keep_config(change, version, fresh)
        save_golden(fresh / GOLDEN_FILE, pulled.golden)
        sync([fresh / GOLDEN_FILE, fresh])
        place = change.version_directory(version)
        if place.exists():
            disk.remove(place)
        disk.rename(fresh, place)


def _keep_config(change: Change, version: int, fresh: Path) -> None:
    """Give the fresh files the config that the version was promoted with, where it can still be read."""
    kept = [change.version_directory(version) / repository.CONFIG_FILE]
    if version == change.ledger.serving_version():
        kept.append(change.directory / repository.CONFIG_FILE)
    for path in kept:
        if path.is_file():
            (fresh / repository.CONFIG_FILE).write_text(repository.with_versions(path, [version]), encoding="utf-8")
            return


def _end(change: Change, registry: Registry, config: Promote, version: int) -> list[Finding]:
    """Observe what was not observed to the end and move the alias; return what there was to do."""
    unobserved = change.ledger.unobserved() == version
    alias = registry.aliases(change.model).get(CHAMPION)
    if not unobserved and alias == version:
        return []
    demanded = load_golden(change.version_directory(version) / GOLDEN_FILE)
    try:
        finish(change, registry, config, version, change.ledger.before(version), demanded, None)
    except PromotionError as error:  # it was taken back, as it would have been by the promotion itself
        return [Finding(str(error))]
    found = [Finding(f"version {version} had not been observed to the end")] if unobserved else []
    if alias != version:
        found.append(
            Finding(f"the registry's alias {CHAMPION} was on {alias or 'nothing'} and not on version {version}")
        )
    for finding in found:
        change.ledger.append(ledger.REPAIRED, what=finding.what, advice="")
    return found
