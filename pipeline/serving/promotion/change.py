"""What one model serves, on disk and in Triton, and the few ways to change it. All of it under the model's lock."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PromotionError
from pipeline.files import sha256
from pipeline.machine import places
from pipeline.records.candidates import MODEL_FILE
from pipeline.records.engines import PLAN_FILE
from pipeline.serving.promotion.ledger import Ledger
from pipeline.serving.triton import disk, golden, repository
from pipeline.serving.triton.control import READY, Control, states
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.golden import GOLDEN_FILE, load_golden

RESTART = "restart Triton (`flyweight down`, `flyweight up`): what is on disk is right, and a restart serves it"


class Change:
    """One model's directory, ledger and server.

    Args:
        model: its name.
        control: the server.
        load_timeout: longest that a load may take, in seconds.
    """

    def __init__(self, model: str, control: Control, load_timeout: float) -> None:
        self.model, self.control, self.load_timeout = model, control, load_timeout
        self.candidate = f"{model}__cand"
        self.directory = places.triton_repository() / model
        self.ledger = Ledger(model)

    def version_directory(self, version: int) -> Path:
        """Return where the files of `version` are."""
        return self.directory / str(version)

    def serves(self) -> int | None:
        """Return the version that is to serve and whose files are there."""
        version = self.ledger.serving_version()
        return version if version is not None and self.version_directory(version).is_dir() else None

    def is_ready(self, version: int) -> bool:
        """Return whether `version` is loaded."""
        return states(self.control, self.model).get(version) == READY

    def trouble(self, version: int) -> str | None:
        """Return what keeps `version` from being what unpinned requests get, or None. Raises `TritonError`."""
        directory = self.version_directory(version)
        demanded = load_golden(directory / GOLDEN_FILE)
        attested = any(
            output.name == repository.ATTESTED
            for output in repository.read_config(directory / repository.CONFIG_FILE).output
        )
        sha256 = repository.manifest_sha256(directory) if attested else None
        return golden.trouble(self.control, self.model, version, sha256, demanded)

    def load(self) -> None:
        """Load the model as its config says, without unloading anything before.

        Raises:
            PromotionError: the directory holds names that would harm Triton.
            TritonError: Triton did not load it.
        """
        if found := strays(self.directory):
            raise PromotionError(stray_text(self.directory, found))
        try:
            self.control.load(self.model, self.load_timeout)
        except TritonError as error:
            if error.status == "DEADLINE_EXCEEDED":
                raise TritonError(
                    f"{self.model} was not loaded within promote.load_timeout_s = {self.load_timeout:g} s. If every load "
                    f"hangs, {RESTART}",
                    error.status,
                ) from error
            raise

    def revert(self, version: int) -> None:
        """Serve `version` alone again. While it is loaded this takes no time; nothing is unloaded before it answers."""
        self.write_policy(version, [version])
        self.load()
        state = states(self.control, self.model).get(version)
        if state != READY:
            raise TritonError(
                f"{self.model} version {version} is {state or 'not loaded'} after a load that Triton called good: {RESTART}",
                "INTERNAL",
            )

    def reload(self, version: int) -> None:
        """Make Triton read the files of `version` again: it does so only where a time stamp has risen."""
        directory = self.version_directory(version)
        for path in (*directory.iterdir(), directory):
            os.utime(path)
        self.revert(version)

    def write_policy(self, version: int, versions: Sequence[int]) -> None:
        """Make the model's config that of `version`, serving `versions`."""
        source = self.version_directory(version)
        labels = self.directory / repository.LABELS_FILE
        if labels.read_bytes() != (source / repository.LABELS_FILE).read_bytes():
            disk.replace(labels, (source / repository.LABELS_FILE).read_text(encoding="utf-8"))
        disk.replace(
            self.directory / repository.CONFIG_FILE, repository.with_versions(source / repository.CONFIG_FILE, versions)
        )

    def damage(self, version: int) -> str | None:
        """Return what is wrong with the files of `version`, or None."""
        directory = self.version_directory(version)
        if not directory.is_dir():
            return f"{directory} is missing"
        for name in (repository.MANIFEST_FILE, repository.CONFIG_FILE, repository.LABELS_FILE, GOLDEN_FILE):
            if not (directory / name).is_file():
                return f"{directory / name} is missing"
        manifest = json.loads((directory / repository.MANIFEST_FILE).read_text(encoding="utf-8"))
        engine = "plan_sha256" in manifest
        model = directory / (PLAN_FILE if engine else MODEL_FILE)
        wanted = manifest["plan_sha256" if engine else "sha256"]
        python = repository.read_config(directory / repository.CONFIG_FILE).backend == "python"
        backend = (
            manifest.get("backend", [repository.BACKEND.name]) if python else []
        )  # older versions have model.py alone
        for path in (model, *(directory / name for name in backend)):
            if not path.is_file():
                return f"{path} is missing"
        found = sha256(model)
        return None if found == wanted else f"{model} has SHA-256 {found}, not {wanted}"

    def clear_staging(self) -> Path:
        """Return an empty place for the candidate's files."""
        disk.clear_staging(self.model)
        return disk.staging() / self.model

    def withdraw(self) -> None:
        """Take the model away from the server and out of the repository."""
        self.control.unload(self.model)
        if self.directory.exists():
            disk.remove(self.directory)


def strays(directory: Path) -> list[str]:
    """Return the names in a model's directory that Triton takes for versions and that are none of ours.

    Triton reads a number off the front of every directory's name: ``3.tmp`` is version 3 to it, and a number beyond 63
    bits ends the whole server.
    """
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(
        path.name
        for path in found
        if re.match(r"\s*[-+]?[0-9]", path.name)
        and (path.is_symlink() or not re.fullmatch(r"[1-9][0-9]{0,9}", path.name) or int(path.name) > 2**31 - 1)
    )


def stray_text(directory: Path, names: Sequence[str]) -> str:
    """Return what to say of `strays`."""
    return (
        f"{directory} holds {', '.join(names)}, which no promotion put there: Triton takes a name that begins with a digit "
        f"for a version, follows no change behind a link, and ends itself over a number beyond 63 bits. Move it away"
    )
