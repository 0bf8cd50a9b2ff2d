"""Models that are served for a while under names of their own, beside the champion: `evaluate` measures candidates so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from pipeline.errors import PromotionError
from pipeline.machine import places
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.control import Control
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import Artifact
from pipeline.settings.serving import Serving


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
    repository.check_name(serving.model)
    prefix = f"{serving.model}__eval_"
    with disk.lock(prefix.rstrip("_")), contextlib.ExitStack() as stack:
        server = control or stack.enter_context(Client())
        remove_models(server, prefix)
        stack.callback(remove_models, server, prefix)
        names = {artifact.candidate: f"{prefix}{artifact.candidate}" for artifact in artifacts}
        for artifact in artifacts:
            name = names[artifact.candidate]
            with disk.scratch() as scratch:
                repository.write_model(scratch / name, artifact, serving, version=1)
                disk.rename(scratch / name, places.triton_repository() / name)
            try:
                server.load(name, load_timeout)
            except TritonError as error:
                raise refusal(f"candidate {artifact.candidate!r}", error, load_timeout) from error
        yield names


def remove_models(control: Control, prefix: str) -> list[str]:
    """Unload and delete the models whose names begin with `prefix`; return their names."""
    there = [path.name for path in places.triton_repository().glob(f"{prefix}*") if path.is_dir()]
    names = {*there, *(name for name, versions in control.index().items() if versions)}
    removed = sorted(name for name in names if name.startswith(prefix))
    for name in removed:
        control.unload(name)
        if (places.triton_repository() / name).exists():
            disk.remove(places.triton_repository() / name)
    return removed


def refusal(who: str, error: TritonError, load_timeout: float) -> PromotionError:
    """Return the error for a model that Triton did not load."""
    if error.status == "DEADLINE_EXCEEDED":
        return PromotionError(
            f"{who} was not loaded within promote.load_timeout_s = {load_timeout:g} s. If it should be, raise the setting; "
            f"if every load hangs, restart Triton (`flyweight down`, `flyweight up`)"
        )
    return PromotionError(f"{who} cannot be served: {error}")
