"""Make the secrets of docker-compose.yml: ``.venv/bin/python infra/make_secrets.py``. It never overwrites one.

Every file is random. The directory is open to its owner alone (0700), which is what keeps other users of the host out.
The files inside are 0444: Compose mounts them as they are, and the users inside the containers are not the owner.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent / "secrets"


def make_secrets(directory: Path) -> list[str]:
    """Write the secrets that are not yet in `directory` and return their names."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    written = [name for name, text in _random().items() if _write_new(directory / name, text)]
    for name, driver in {"airflow": "postgresql+psycopg2", "mlflow": "postgresql+psycopg2"}.items():
        password = (directory / f"{name}_database_password").read_text(encoding="ascii")
        if _write_new(directory / f"{name}_database_uri", f"{driver}://{name}:{password}@postgres:5432/{name}"):
            written.append(f"{name}_database_uri")
    return written


def _random() -> dict[str, str]:
    """Name -> a fresh value. Hexadecimal, so that none needs quoting in an address or in SQL."""
    names = (
        "postgres_password",
        "airflow_database_password",
        "mlflow_database_password",
        "airflow_secret_key",
        "airflow_jwt_secret",
        "triton_control_key",
    )
    return {name: secrets.token_hex(32) for name in names} | {
        "airflow_fernet_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "airflow_passwords": json.dumps({"admin": secrets.token_urlsafe(16)}),
    }


def _write_new(path: Path, text: str) -> bool:
    """Write `text` to `path` unless there is such a file; say whether it was written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    path.chmod(0o444)
    return True


def main() -> None:
    """Make what is missing, and say so without showing any of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    directory = parser.parse_args().directory
    for name in make_secrets(directory):
        print(f"made {directory / name}")  # noqa: T201
    print(f"The login of Airflow is in {directory / 'airflow_passwords'}")  # noqa: T201


if __name__ == "__main__":
    main()
