"""How a model goes live without dropping a request.

Each step is a line in the ledger before the next begins. Whatever is killed in between, the next promotion or
`reconcile` first brings disk and server back to what was verified (`repair`), and the same promotion can be started again.

1. begin      under the model's lock; the registered version becomes Triton's version
2. stage      all files beside the repository, hashed and fsynced; the config is linted against the model
3. preflight  golden answers in a process of its own, with a deadline
4. candidate  rename to ``<model>__cand``, load, golden answers over gRPC, attested hash, probes beside the served
              version's, where asked for a share of the live requests (`live`), unload. A refusal ends here at the latest,
              and what serves was never touched
5. commit     rename(2) into place, then `config.pbtxt` with the policy "previous and new", then load **without** unload
6. verify     index, version, attested hash and golden answers of what unpinned requests get. Else back to the previous
7. observe    failures, p99 and drift for a while (`observe`). A breach goes back to the previous on its own
8. alias      ``champion`` and ``previous`` move in the registry

Why each of them is as it is: docs/decisions/promotion.md. What to do when: docs/promotion.md.
"""

from __future__ import annotations

import contextlib
import filecmp
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ModelError, PromotionError
from pipeline.files import sync
from pipeline.machine import places
from pipeline.protocols import Registry
from pipeline.records.candidates import MODEL_FILE
from pipeline.serving.promotion import canary, ledger, preflight, probes
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.observe import observe
from pipeline.serving.promotion.probes import Probes
from pipeline.serving.promotion.repair import repair_or_raise
from pipeline.serving.triton import disk, golden, repository
from pipeline.serving.triton.control import Control, is_reachable, wait_until_gone
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.golden import GOLDEN_FILE, Golden, save_golden
from pipeline.serving.triton.lint import lint
from pipeline.serving.triton.repository import Artifact
from pipeline.serving.triton.temporary import refusal, remove_models
from pipeline.settings.serving import Promote, Serving

CHAMPION, PREVIOUS = "champion", "previous"


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended."""

    model: str
    version: int
    sha256: str
    previous_version: int | None
    ledger: Path
    reused: bool
    """These bytes under these settings served already; nothing was changed."""


def promote_artifact(
    serving: Serving,
    artifact: Artifact,
    demanded: Golden,
    registry: Registry,
    tags: Mapping[str, str],
    control: Control,
    config: Promote,
    version: int | None = None,
) -> Promotion:
    """Make `artifact` what ``serving.model`` answers with, or leave all as it was.

    Args:
        serving: name and settings of the served model.
        artifact: the file; its directory is what is registered.
        demanded: what it must answer.
        registry: gives the version number and moves the aliases.
        tags: recorded with the registered version, beside the hash.
        control: the server.
        config: deadlines and limits.
        version: the registered version that `artifact` is; None registers it unless it is known.

    Raises:
        PromotionError: the artifact was refused, or the disk is full or closed; what served before serves on.
        TritonError: the server cannot be reached or does not do as it should; another try may pass.
        BlockingIOError: another process is changing this model.
    """
    model = serving.model
    repository.check_name(model)
    with disk.lock(model), disk.explained(model):
        change = Change(model, control, config.load_timeout_s)
        attested = artifact.sha256 if repository.attests(serving) else None
        repair_or_raise(change)
        previous = change.serves()
        if previous is not None and _already_serves(change, artifact, serving, demanded, previous, attested):
            before = change.ledger.before(previous)
            finish(change, registry, config, previous, before, demanded, None)
            return Promotion(model, previous, artifact.sha256, before, change.ledger.path, reused=True)
        canary.check(change, previous, config)
        number = _version(registry, model, artifact, tags, previous, version)
        change.ledger.append(ledger.BEGIN, version=number, sha256=artifact.sha256, previous=previous)
        try:
            staged = _stage(change, artifact, serving, demanded, number)
            registry.attach(model, number, staged / GOLDEN_FILE)
            model_file = staged / MODEL_FILE
            whole = model_file if model_file.is_file() else artifact.onnx  # an engine answers on its GPU alone
            _preflight(change, whole, demanded, serving.threads, config, number)
        except (PromotionError, ModelError) as error:
            refuse(change, number, str(error))
        before_it = _try_candidate(change, number, attested, demanded, previous, config)
        _commit(change, number, previous)
        _go_live(change, number, previous, artifact.sha256, attested, demanded)
        finish(change, registry, config, number, previous, demanded, before_it)
    return Promotion(model, number, artifact.sha256, previous, change.ledger.path, reused=False)


def finish(
    change: Change,
    registry: Registry,
    config: Promote,
    version: int,
    previous: int | None,
    demanded: Golden,
    before: Probes | None,
) -> None:
    """Observe a verified version unless that has been done, and move the aliases; or go back where a limit is breached.

    `before` is what probes met with the version before; None asks that version now, while it is warm.

    Raises `PromotionError` for a breach: the previous version serves again.
    """
    if change.ledger.unobserved() == version:
        if before is None and previous is not None and change.is_ready(previous):
            before = probes.probe(change.control, change.model, demanded, config.probes, str(previous))
        figures, breach = observe(change.control, change.model, version, demanded, before, config)
        if breach is not None:
            _take_back(change, version, previous, breach)
        change.ledger.append(ledger.OBSERVED, version=version, **figures)
        set_aliases(registry, change.model, version, previous)
        change.ledger.append(ledger.DONE, version=version)
        return
    set_aliases(registry, change.model, version, previous)


def set_aliases(registry: Registry, model: str, version: int, previous: int | None) -> None:
    """Let the registry say what serves and what served before."""
    registry.set_alias(model, CHAMPION, version)
    if previous is not None:
        registry.set_alias(model, PREVIOUS, previous)


def refuse(change: Change, version: int, reason: str) -> None:
    """Note a refusal, tidy up and raise it as `PromotionError`."""
    change.ledger.append(ledger.REFUSED, version=version, reason=reason)
    disk.clear_staging(change.model)
    with contextlib.suppress(TritonError):  # a server that hangs over the candidate holds on to it; `repair` says so
        remove_models(change.control, change.candidate)
    raise PromotionError(f"{change.model} version {version} was refused, what served before serves on: {reason}")


def _version(
    registry: Registry,
    model: str,
    artifact: Artifact,
    tags: Mapping[str, str],
    previous: int | None,
    wanted: int | None,
) -> int:
    """Return the version to serve: `wanted`, or one of these bytes that never came to serve, or a new one.

    Unpinned requests get the highest version, so one that nobody asked for by number must be above the one that serves.
    The version that serves is never written again: the same bytes under other settings are another version.
    """
    if wanted is not None and wanted != previous:
        repository.check_version(wanted)
        return wanted
    known = registry.version_with_sha(model, artifact.sha256)
    fresh = known is not None and known > (previous or 0)
    version = known if fresh else registry.register(model, artifact.onnx.parent, {**tags, "sha256": artifact.sha256})
    assert version is not None
    repository.check_version(version)
    if version <= (previous or 0):
        raise PromotionError(
            f"the registry gave version {version} of {model}, but version {previous} serves: numbers must rise. "
            f"Was the registry emptied while {places.triton_repository()} was kept? Remove {model} from it, or keep both"
        )
    return version


def _already_serves(
    change: Change, artifact: Artifact, serving: Serving, demanded: Golden, version: int, attested: str | None
) -> bool:
    """Return whether these bytes under these settings are what unpinned requests get."""
    directory = change.version_directory(version)
    with disk.scratch() as room:
        repository.write_version(room / directory.name, artifact, serving, version)
        same = all(
            (directory / path.name).is_file() and filecmp.cmp(path, directory / path.name, shallow=False)
            for path in (room / directory.name).iterdir()
        )
    return same and golden.trouble(change.control, change.model, version, attested, demanded) is None


def _stage(change: Change, artifact: Artifact, serving: Serving, demanded: Golden, version: int) -> Path:
    """Write the candidate outside the repository and lint it; return the directory of its version."""
    place = change.clear_staging()
    repository.write_model(place, artifact, serving, version)
    lint(artifact, serving)
    directory = place / str(version)
    save_golden(directory / GOLDEN_FILE, demanded)
    sync([directory / GOLDEN_FILE, directory])
    change.ledger.append(ledger.STAGED, version=version)
    return directory


def _preflight(change: Change, file: Path, demanded: Golden, threads: int, config: Promote, version: int) -> None:
    """Raise `PromotionError` unless the ONNX file gives the golden answers outside Triton."""
    answered = preflight.answers(file, demanded.inputs, threads, config.preflight_timeout_s)
    if trouble := golden.difference(demanded.outputs, answered):
        raise PromotionError(f"preflight: {trouble}")
    change.ledger.append(ledger.PREFLIGHTED, version=version)


def _try_candidate(
    change: Change, version: int, attested: str | None, demanded: Golden, previous: int | None, config: Promote
) -> Probes | None:
    """Load the candidate under its own name and look at what it answers; what serves is not touched.

    Returns what the same probes met with the version that serves.
    """
    disk.rename(disk.staging() / change.model, places.triton_repository() / change.candidate)
    change.ledger.append(ledger.CANDIDATE_PLACED, version=version)
    before, figures = None, {}
    try:
        change.control.load(change.candidate, change.load_timeout)
        trouble = golden.trouble(change.control, change.candidate, version, attested, demanded)
        if trouble is None:
            seen = probes.probe(change.control, change.candidate, demanded, config.probes)
            if previous is not None and _same_inputs(change, previous):
                before = probes.probe(change.control, change.model, demanded, config.probes)
            trouble = probes.breach(seen, before, probes.limits(config, before))
            figures = dict(probes.evidence(seen, before))
        if trouble is None and config.live_test != "none":
            trouble = _try_live(change, version, previous, config)
    except TritonError as error:
        if not is_reachable(change.control):
            raise
        trouble = str(refusal("the candidate", error, change.load_timeout))
    if trouble is not None:
        refuse(change, version, trouble)
    change.ledger.append(ledger.CANDIDATE_PASSED, version=version, **figures)
    change.control.unload(change.candidate)
    wait_until_gone(change.control, change.candidate, change.load_timeout)
    change.ledger.append(ledger.CANDIDATE_UNLOADED, version=version)
    return before


def _try_live(change: Change, version: int, previous: int | None, config: Promote) -> str | None:
    """Try the loaded candidate on live requests; return why it did not pass, or None."""
    if previous is None or not _same_inputs(change, previous):
        return (
            f"promote.live_test is {config.live_test!r}, but it takes or gives other tensors or labels than version {previous}, "
            f"so it cannot answer that version's requests: promote it without"
        )
    change.ledger.append(ledger.LIVE_TEST, version=version, kind=config.live_test, share=config.live_share)
    try:
        outcome = canary.run(change, previous, config)
    except PromotionError as error:
        return str(error)
    change.ledger.append(ledger.LIVE_TESTED, version=version, verdict=outcome.verdict, **outcome.figures)
    if not outcome.reason:
        remove_models(change.control, canary.baseline(change))
        return None
    return f"{config.live_test}: {outcome.reason}"


def _same_inputs(change: Change, previous: int) -> bool:
    """Return whether the version that serves takes what the candidate takes and gives what it gives."""
    tried = places.triton_repository() / change.candidate
    (candidate,) = repository.version_directories(tried).values()
    return change.is_ready(previous) and repository.same_interface(change.version_directory(previous), candidate)


def _commit(change: Change, version: int, previous: int | None) -> None:
    """Rename the very files that were tried into place, then name them in the policy."""
    tried = places.triton_repository() / change.candidate
    if previous is None:
        disk.rename(tried, change.directory)
        change.ledger.append(ledger.COMMITTED, version=version)
        return
    place = change.version_directory(version)
    if place.exists():  # it has served before
        if version in repository.served_versions(change.directory):  # a restart must not look for it while it is away
            change.write_policy(previous, [previous])
        disk.remove(place)
    disk.rename(tried / str(version), place)
    shutil.rmtree(tried)
    change.ledger.append(ledger.COMMITTED, version=version)
    both = (
        version > previous  # unpinned requests get the highest that is loaded
        and change.is_ready(previous)
        and repository.same_interface(change.version_directory(previous), place)
    )
    change.write_policy(version, [previous, version] if both else [version])
    change.ledger.append(ledger.POLICY_WRITTEN, version=version)


def _go_live(
    change: Change, version: int, previous: int | None, sha256: str, attested: str | None, demanded: Golden
) -> None:
    """Load without unload and look at what unpinned requests get; go back to `previous` where that is wrong."""
    try:
        change.load()
        change.ledger.append(ledger.LOADED, version=version)
        trouble = golden.trouble(change.control, change.model, version, attested, demanded)
    except TritonError as error:
        if not is_reachable(change.control):
            raise
        trouble = str(refusal(f"version {version}", error, change.load_timeout))
    if trouble is None:
        change.ledger.append(ledger.VERIFIED, version=version, sha256=sha256, previous=previous)
        return
    if previous is None:
        change.withdraw()
    else:
        change.revert(previous)
        disk.remove(change.version_directory(version))
    refuse(change, version, trouble)


def _take_back(change: Change, version: int, previous: int | None, breach: str) -> None:
    """Go back from a version that breached a limit while it was observed; raise `PromotionError`."""
    if previous is None:
        change.ledger.append(ledger.WITHDRAWN, version=version, reason=breach)
        change.withdraw()
        raise PromotionError(
            f"{change.model} version {version} went live and was withdrawn while it was observed: {breach}. "
            f"There is no version before it: nothing serves"
        )
    change.ledger.append(ledger.ROLLED_BACK, version=previous, previous=version, reason=breach)
    change.revert(previous)
    change.ledger.append(ledger.REVERTED, version=previous)
    raise PromotionError(
        f"{change.model} version {version} went live and was taken back while it was observed, "
        f"version {previous} serves again: {breach}"
    )
