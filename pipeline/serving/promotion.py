"""How a model goes live without dropping a request, and how it goes back.

Each step is journaled; whatever is killed in between, the next promotion first brings the repository back to what the
ledger says was verified. In order:

1. stage    all files beside the repository, hashed and fsynced
2. try      rename to ``<model>__cand``, load, compare golden answers and the attested hash, unload. A refusal ends here
3. commit   rename(2) into place, then `config.pbtxt` with the policy "previous and new", then load **without** unload
4. verify   index, golden answers, version and attested hash of what unpinned requests get. Else back to the previous

Why each of them is as it is: docs/decisions/promotion.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import places
from pipeline.config import Serving
from pipeline.errors import PromotionError
from pipeline.serving import repository as files
from pipeline.serving.client import Answer, Client, TritonError
from pipeline.serving.ledger import ROLLED_BACK, VERIFIED, Ledger, lock
from pipeline.serving.repository import Artifact
from pipeline.types import Registry

CHAMPION, PREVIOUS = "champion", "previous"
TOLERANCE = 1e-3
"""Served logits may differ from those of the same file in this process by so much, absolutely or as a share: formed
batches of another size may add in another order."""


class Control(Protocol):
    """What promotion asks of a server; `Client` is one."""

    def index(self) -> dict[str, dict[int, str]]:
        """Return model -> version -> state."""

    def load(self, model: str, timeout: float) -> None:
        """Load or reload a model. Raises `TritonError`."""

    def unload(self, model: str) -> None:
        """Stop serving a model. Raises `TritonError`."""

    def infer(self, model: str, inputs: Mapping[str, NDArray], version: str = "", *, attest: bool = False) -> Answer:
        """Return an answer. Raises `TritonError`."""


@dataclass(frozen=True)
class Golden:
    """Inputs with the answers that a served model must repeat; at most a full batch."""

    inputs: Mapping[str, NDArray]
    outputs: Mapping[str, NDArray]


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


def promote(
    serving: Serving,
    artifact: Artifact,
    golden: Golden,
    registry: Registry,
    tags: Mapping[str, str],
    control: Control,
    load_timeout: float,
) -> Promotion:
    """Make `artifact` what ``serving.model`` answers with, or leave all as it was.

    Args:
        serving: name and settings of the served model.
        artifact: the file; its directory is what is registered.
        golden: what it must answer.
        registry: gives the version number and moves the aliases.
        tags: recorded with the registered version, beside the hash.
        control: the server.
        load_timeout: longest that a load may take, in seconds.

    Raises:
        PromotionError: the artifact was refused; what served before serves on.
        TritonError: the server cannot be reached or does not do as it should; another try may pass.
        BlockingIOError: another process is promoting this model.
    """
    model = serving.model
    files.check_name(model)
    with lock(model):
        change = _Change(model, control, load_timeout)
        change.recover()
        previous = change.serves()
        if previous is not None and change.already_serves(artifact, serving, golden, previous):
            before = change.ledger.before(previous)
            _set_aliases(registry, model, previous, before)
            return Promotion(model, previous, artifact.sha256, before, change.ledger.path, reused=True)
        version = _version(registry, model, artifact, tags, previous)
        change.ledger.append("begin", version=version, sha256=artifact.sha256, previous=previous)
        change.stage(artifact, serving, version)
        change.try_candidate(version, artifact.sha256, golden)
        change.commit(version, previous)
        change.go_live(version, previous, artifact.sha256, golden)
        _set_aliases(registry, model, version, previous)
        change.ledger.append("done", version=version)
    return Promotion(model, version, artifact.sha256, previous, change.ledger.path, reused=False)


def rollback(
    model: str, registry: Registry | None = None, control: Control | None = None, load_timeout: float = 60.0
) -> int:
    """Let the version before the present one serve again and return it; at once while it is still loaded.

    Raises `PromotionError` where there is none to go back to.
    """
    files.check_name(model)
    with lock(model), contextlib.ExitStack() as stack:
        change = _Change(model, control or stack.enter_context(Client()), load_timeout)
        change.recover()
        version = change.serves()
        previous = None if version is None else change.ledger.before(version)
        if version is None or previous is None or not (change.directory / str(previous)).is_dir():
            raise PromotionError(
                f"{model} cannot be rolled back: "
                + (f"no version served before {version}" if version is not None else "it has never been promoted")
            )
        change.revert(previous)
        change.ledger.append(ROLLED_BACK, version=previous, previous=version)
        if registry is not None:
            registry.set_alias(model, CHAMPION, previous)
    return previous


@contextlib.contextmanager
def temporary_models(
    serving: Serving, artifacts: Sequence[Artifact], control: Control | None = None, load_timeout: float = 60.0
) -> Iterator[dict[str, str]]:
    """Serve `artifacts` beside the champion under names of their own while the block runs, then take them away.

    Yields candidate -> name in Triton, ``<model>__eval_<candidate>``. What a killed block left is removed first.

    Raises:
        PromotionError: an artifact cannot be loaded.
        TritonError: the server cannot be reached.
    """
    files.check_name(serving.model)
    prefix = f"{serving.model}__eval_"
    with lock(prefix.rstrip("_")), contextlib.ExitStack() as stack:
        server = control or stack.enter_context(Client())
        _remove_models(server, prefix)
        stack.callback(_remove_models, server, prefix)
        names = {artifact.candidate: f"{prefix}{artifact.candidate}" for artifact in artifacts}
        for artifact in artifacts:
            name = names[artifact.candidate]
            with _scratch() as scratch:
                files.write_model(scratch / name, artifact, serving, version=1)
                _rename(scratch / name, places.triton_repository() / name)
            try:
                server.load(name, load_timeout)
            except TritonError as error:
                raise _refusal(f"candidate {artifact.candidate!r}", error, load_timeout) from error
        yield names


class _Change:
    """The steps of changing what one model serves, all under its lock."""

    def __init__(self, model: str, control: Control, load_timeout: float) -> None:
        self.model, self.control, self.load_timeout = model, control, load_timeout
        self.candidate = f"{model}__cand"
        self.directory = places.triton_repository() / model
        self.ledger = Ledger(model)

    def serves(self) -> int | None:
        """Return the version that was last verified to serve and whose files are there."""
        settled = self.ledger.serving()
        version = None if settled is None else int(settled["version"])
        return version if version is not None and (self.directory / str(version)).is_dir() else None

    def recover(self) -> None:
        """Bring disk and server back to what the ledger has verified, whatever an interrupted change left."""
        shutil.rmtree(_staging() / self.model, ignore_errors=True)
        _remove_models(self.control, self.candidate)
        verified, policy = self.serves(), files.served_versions(self.directory)
        if verified is None:
            if self.directory.exists() and not self.ledger.entries():
                raise PromotionError(
                    f"{self.directory} was not put there by a promotion: {self.ledger.path} knows nothing of it. "
                    f"Move it away, or set serving.model to another name"
                )
            if self.directory.exists():  # a first promotion that never came to be verified
                self.ledger.append("removed", versions=list(policy))
                _remove_models(self.control, self.model, exactly=True)
        elif not policy or policy[-1] != verified:
            self.ledger.append("recovered", found=list(policy), version=verified)
            self.revert(verified)
        if verified is not None:
            self._drop_newer_than(verified)

    def already_serves(self, artifact: Artifact, serving: Serving, golden: Golden, version: int) -> bool:
        """Return whether these bytes under these settings are what unpinned requests get."""
        directory = self.directory / str(version)
        config, labels = ((directory / name).read_text("utf-8") for name in (files.CONFIG_FILE, files.LABELS_FILE))
        same = (
            files.manifest_sha256(directory) == artifact.sha256
            and config == files.config_pbtxt(artifact.spec, serving, [version])
            and labels == files.labels_text(artifact.spec)
            and (directory / files.BACKEND.name).read_bytes() == files.BACKEND.read_bytes()
        )
        if same and not self._is_ready(version):
            with contextlib.suppress(TritonError):  # then a promotion mends it
                self.control.load(self.model, self.load_timeout)
        return same and self._trouble(self.model, version, artifact.sha256, golden) is None

    def stage(self, artifact: Artifact, serving: Serving, version: int) -> None:
        """Write the candidate outside the repository."""
        files.write_model(_staging() / self.model, artifact, serving, version)
        self.ledger.append("staged", version=version)

    def try_candidate(self, version: int, sha256: str, golden: Golden) -> None:
        """Load the candidate under its own name and look at what it answers; what serves is not touched."""
        place = places.triton_repository() / self.candidate
        _rename(_staging() / self.model, place)
        self.ledger.append("candidate_placed", version=version)
        try:
            self.control.load(self.candidate, self.load_timeout)
            trouble = self._trouble(self.candidate, version, sha256, golden)
        except TritonError as error:
            if error.status == "UNAVAILABLE" and not self._reachable():
                raise
            trouble = str(_refusal("the candidate", error, self.load_timeout))
        if trouble is not None:
            self._refuse(version, trouble)
        self.ledger.append("candidate_passed", version=version)
        self.control.unload(self.candidate)
        self._wait_until_gone(self.candidate)
        self.ledger.append("candidate_unloaded", version=version)

    def commit(self, version: int, previous: int | None) -> None:
        """Rename the very files that were tried into place, then name them in the policy."""
        tried = places.triton_repository() / self.candidate
        if previous is None:
            _rename(tried, self.directory)
            self.ledger.append("committed", version=version)
            return
        _rename(tried / str(version), self.directory / str(version))
        shutil.rmtree(tried)
        self.ledger.append("committed", version=version)
        warm = self._is_ready(previous) and files.same_interface(
            self.directory / str(previous), self.directory / str(version)
        )
        self._write_policy(version, [previous, version] if warm else [version])
        self.ledger.append("policy_written", version=version)

    def go_live(self, version: int, previous: int | None, sha256: str, golden: Golden) -> None:
        """Load without unload and look at what unpinned requests get; go back to `previous` where that is wrong."""
        try:
            self.control.load(self.model, self.load_timeout)
            self.ledger.append("loaded", version=version)
            trouble = self._trouble(self.model, version, sha256, golden)
        except TritonError as error:
            if error.status == "UNAVAILABLE" and not self._reachable():
                raise
            trouble = str(_refusal(f"version {version}", error, self.load_timeout))
        if trouble is None:
            self.ledger.append(VERIFIED, version=version, sha256=sha256, previous=previous)
            return
        if previous is None:
            _remove_models(self.control, self.model, exactly=True)
        else:
            self.revert(previous)
            self._drop_newer_than(previous)
        self._refuse(version, trouble)

    def revert(self, version: int) -> None:
        """Serve `version` alone again. While it is loaded this takes no time; nothing is unloaded before it answers."""
        self._write_policy(version, [version])
        self.control.load(self.model, self.load_timeout)
        state = self.control.index().get(self.model, {}).get(version)
        if state != "READY":
            raise TritonError(
                f"{self.model} version {version} is {state or 'not loaded'} after a load that Triton called good: "
                f"restart Triton (`flyweight down`, `flyweight up`); the repository says version {version}",
                "INTERNAL",
            )

    def _write_policy(self, version: int, versions: Sequence[int]) -> None:
        """Make the model's config that of `version`, serving `versions`."""
        source = self.directory / str(version)
        if (self.directory / files.LABELS_FILE).read_bytes() != (source / files.LABELS_FILE).read_bytes():
            _replace(self.directory / files.LABELS_FILE, (source / files.LABELS_FILE).read_text(encoding="utf-8"))
        _replace(self.directory / files.CONFIG_FILE, files.with_versions(source / files.CONFIG_FILE, versions))

    def _drop_newer_than(self, version: int) -> None:
        """Remove versions that never came to serve or were rolled back from."""
        for number, path in files.version_directories(self.directory).items():
            if number > version and number not in files.served_versions(self.directory):
                _remove(path)

    def _trouble(self, model: str, version: int, sha256: str, golden: Golden) -> str | None:
        """Return what is wrong with what unpinned requests to `model` get, or None."""
        state = self.control.index().get(model, {}).get(version)
        if state != "READY":
            return f"version {version} is {state or 'not loaded'}, not READY"
        answer = self.control.infer(model, golden.inputs, attest=True)
        if answer.version != version:
            return f"unpinned requests get version {answer.version}, not {version}"
        attested = {row.tobytes().hex() for row in answer.outputs[files.ATTESTED]}
        if attested != {sha256}:
            return f"the running model attests SHA-256 {', '.join(sorted(attested))}, not {sha256}"
        return difference(golden.outputs, answer.outputs)

    def _refuse(self, version: int, trouble: str) -> None:
        """Note a refusal, tidy up and raise it."""
        self.ledger.append("refused", version=version, reason=trouble)
        _remove_models(self.control, self.candidate)
        raise PromotionError(f"{self.model} version {version} was refused, what served before serves on: {trouble}")

    def _is_ready(self, version: int) -> bool:
        return self.control.index().get(self.model, {}).get(version) == "READY"

    def _reachable(self) -> bool:
        try:
            self.control.index()
        except TritonError:
            return False
        return True

    def _wait_until_gone(self, model: str) -> None:
        """Wait until no version of `model` is in use: Triton returns from an unload before it has ended."""
        deadline = time.monotonic() + self.load_timeout
        while any(state not in {"", "UNAVAILABLE"} for state in self.control.index().get(model, {}).values()):
            if time.monotonic() > deadline:
                raise TritonError(f"{model} was not unloaded within {self.load_timeout:g} s", "DEADLINE_EXCEEDED")
            time.sleep(0.02)


def difference(expected: Mapping[str, NDArray], served: Mapping[str, NDArray]) -> str | None:
    """Return how `served` outputs differ from `expected` beyond `TOLERANCE`, in words, or None."""
    for name, wanted in expected.items():
        got = served.get(name)
        if got is None or got.shape != wanted.shape:
            return f"output {name!r} has shape {None if got is None else got.shape}, not {wanted.shape}"
        if not np.isfinite(got.astype(np.float64)).all():
            return f"output {name!r} holds values that are not finite"
        wrong = ~np.isclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        if wrong.any():
            rows = int(wrong.reshape(len(wrong), -1).any(axis=1).sum())
            largest = float(np.abs(got.astype(np.float64) - wanted).max())
            return (
                f"{rows} of {len(wanted)} golden answers differ from ONNX Runtime's in this process; "
                f"{name!r} by up to {largest:.3g}, allowed is {TOLERANCE:g}"
            )
    return None


def _set_aliases(registry: Registry, model: str, version: int, previous: int | None) -> None:
    registry.set_alias(model, CHAMPION, version)
    if previous is not None:
        registry.set_alias(model, PREVIOUS, previous)


def _version(registry: Registry, model: str, artifact: Artifact, tags: Mapping[str, str], previous: int | None) -> int:
    """Return the version of these bytes: one that was registered and never came to serve, or a new one.

    Unpinned requests get the highest version, so it must be above the one that serves.
    """
    known = registry.version_with_sha(model, artifact.sha256)
    fresh = known is not None and known > (previous or 0)
    version = known if fresh else registry.register(model, artifact.onnx.parent, {**tags, "sha256": artifact.sha256})
    assert version is not None
    files.check_version(version)
    if version <= (previous or 0):
        raise PromotionError(
            f"the registry gave version {version} of {model}, but version {previous} serves: numbers must rise. "
            f"Was the registry emptied while {places.triton_repository()} was kept? Remove {model} from it, or keep both"
        )
    return version


def _refusal(who: str, error: TritonError, load_timeout: float) -> PromotionError:
    if error.status == "DEADLINE_EXCEEDED":
        return PromotionError(
            f"{who} was not loaded within promote.load_timeout_s = {load_timeout:g} s. If it should be, raise the setting; "
            f"if every load hangs, restart Triton"
        )
    return PromotionError(f"{who} cannot be served: {error}")


def _staging() -> Path:
    return places.serving() / "staging"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A new directory on the repository's file system, gone afterwards."""
    _staging().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=_staging()) as name:
        yield Path(name)


def _rename(source: Path, target: Path) -> None:
    """Move a directory in one step that a crash cannot halve. Never a link: Triton would not see it change."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    files.sync([target.parent])


def _replace(target: Path, text: str) -> None:
    """Give a file in the repository new content in one step."""
    with _scratch() as scratch:
        new = scratch / target.name
        new.write_text(text, encoding="utf-8")
        files.sync([new])
        os.replace(new, target)  # noqa: PTH105
    files.sync([target.parent])


def _remove(directory: Path) -> None:
    """Take a directory out of the repository in one step, then delete it."""
    with _scratch() as scratch:
        _rename(directory, scratch / directory.name)


def _remove_models(control: Control, prefix: str, *, exactly: bool = False) -> None:
    """Unload and delete the models whose names begin with `prefix`."""
    there = [path.name for path in places.triton_repository().glob(f"{prefix}*") if path.is_dir()]
    names = {*there, *(name for name, versions in control.index().items() if versions)}
    for name in sorted(name for name in names if name == prefix or (not exactly and name.startswith(prefix))):
        control.unload(name)
        if (places.triton_repository() / name).exists():
            _remove(places.triton_repository() / name)
