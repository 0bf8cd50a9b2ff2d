"""MLflow's Model Registry, as promotion uses it: versions of a model, their files and tags, and aliases."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import FlyweightError, PromotionError
from pipeline.files import sha256
from pipeline.machine import places
from pipeline.records.candidates import MODEL_FILE
from pipeline.tracking import models, runs
from pipeline.tracking.client import make_client, translated
from pipeline.tracking.rest import NotFound, Refused


def model_registry() -> MlflowRegistry:
    """Return the Model Registry for use outside a stage."""
    return MlflowRegistry(make_client(), runs.experiment(), run_id=None)


class MlflowRegistry:
    """`protocols.Registry` on MLflow's Model Registry."""

    def __init__(self, client: Any, experiment: str, run_id: str | None) -> None:
        self._client, self._experiment, self._run_id = client, experiment, run_id

    def register(self, name: str, directory: Path, tags: dict[str, str]) -> int:
        """Record the model in `directory` (model.onnx, model.json) as a new version of `name`; return the version."""
        with contextlib.suppress(Refused), translated(f"registering the model {name}"):
            self._client.create_registered_model(name)  # refused where it is there already
        with translated(f"registering a version of {name}"):
            model = self._logged_model(directory)
            version = self._client.create_model_version(
                name, source=model.model_uri, run_id=model.source_run_id, tags=tags, model_id=model.model_id
            )
        return int(version.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Make `alias` of the model `name` point at `version`."""
        with translated(f"setting the alias {alias} of {name}"):
            self._client.set_registered_model_alias(name, alias, str(version))

    def attach(self, name: str, version: int, file: Path) -> None:
        """Put a further file beside those of a version; one of the same name is replaced."""
        with translated(f"adding {file.name} to version {version} of {name}"):
            source = self._client.get_model_version(name, str(version)).source  # models:/<id of the logged model>
            self._client.log_model_artifact(source.rpartition("/")[2], str(file))

    def fetch(self, name: str, version: int, directory: Path) -> Mapping[str, str]:
        """Put all files of a version into `directory` and return its tags.

        Raises `PromotionError` where there is no such version.
        """
        from mlflow.artifacts import download_artifacts

        try:
            with translated(f"reading version {version} of {name}"):
                found = self._client.get_model_version(name, str(version))
        except NotFound as error:
            known = sorted(int(one.version) for one in self._client.search_model_versions(f"name = '{name}'"))
            raise PromotionError(
                f"the registry at {places.mlflow()} has no version {version} of {name}; "
                f"it has: {', '.join(map(str, known)) or 'none'}"
            ) from error
        try:
            with translated(f"fetching version {version} of {name}"):
                download_artifacts(artifact_uri=found.source, dst_path=str(directory), tracking_uri=places.mlflow())
        except (FlyweightError, FileNotFoundError) as error:
            raise PromotionError(f"the files of version {version} of {name} cannot be fetched: {error}") from error
        return dict(found.tags)

    def aliases(self, name: str) -> Mapping[str, int]:
        """Return alias -> version of the model `name`; nothing for one that was never registered."""
        try:
            with translated(f"reading the aliases of {name}"):
                found = self._client.get_registered_model(name)
        except NotFound:
            return {}
        return {alias: int(version) for alias, version in found.aliases.items()}

    def version_with_sha(self, name: str, sha256: str) -> int | None:
        """Return the newest version of `name` that was registered with the tag ``sha256``, or None."""
        with translated(f"looking for a version of {name}"):
            found = self._client.search_model_versions(f"name = '{name}' and tags.sha256 = '{sha256}'")
        return max((int(version.version) for version in found), default=None)

    def _logged_model(self, directory: Path) -> Any:
        """The model that `export_onnx` logged with these bytes; logged now where it came from elsewhere."""
        wanted = sha256(directory / MODEL_FILE)
        found = self._client.search_logged_models([self._experiment], filter_string=f"tags.sha256 = '{wanted}'")
        return found[0] if found else models.log(self._client, self._experiment, self._run_id, directory, wanted)
