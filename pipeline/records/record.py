"""What the typed JSON files have in common: strict, frozen, read with one error, written in one way."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ModelError

_Model = TypeVar("_Model", bound=BaseModel)


class Record(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read(path: Path, model: type[_Model], stage: str) -> _Model:
    """Return what `stage` wrote to `path`. Raises `ModelError`."""
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}): give the directory that `{stage}` wrote, or run "
            f"`flyweight {stage}`"
        ) from error
    except ValidationError as error:
        raise ModelError(f"{path} is not what `{stage}` writes; run `flyweight {stage}` again: {error}") from error


def write(path: Path, record: BaseModel) -> Path:
    """Write `record` to `path` and return it."""
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path
