"""Stores of MLflow with all tables and nothing in them. To make the tables takes seconds, and so they are made once."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

_MADE = Path(__file__).resolve().parents[2] / ".pytest_cache"


def fresh(file: Path) -> str:
    """Put an empty store at `file`; return its address."""
    made = _MADE / f"mlflow-{version('mlflow')}.db"
    _MADE.mkdir(exist_ok=True)
    with FileLock(made.with_suffix(".lock")):
        if not made.exists():
            half = made.with_suffix(".half")
            half.unlink(missing_ok=True)
            _make(half)
            half.rename(made)
    shutil.copyfile(made, file)
    return f"sqlite:///{file}"


def _make(file: Path) -> None:
    from mlflow.store.db.utils import _safe_initialize_tables, create_sqlalchemy_engine_with_retry

    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{file}")
    _safe_initialize_tables(engine)
    engine.dispose()
