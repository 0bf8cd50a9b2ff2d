"""Certificates of Triton's gRPC endpoint: which files they are, and what server and client need to know of them.

The directory that ``FLYWEIGHT_TRITON_TLS`` names holds `CA`, on the server also `SERVER_CERTIFICATE` and `SERVER_KEY`, and
where clients must show who they are (``FLYWEIGHT_TRITON_MUTUAL_TLS=1``) on each client `CLIENT_CERTIFICATE` and
`CLIENT_KEY`. ``infra/make_certificates.py`` makes such a directory. HTTP stays on loopback: Triton has no TLS for it.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pipeline.errors import FlyweightError
from pipeline.machine import places

CA = "ca.pem"
SERVER_CERTIFICATE, SERVER_KEY = "server.pem", "server.key"
CLIENT_CERTIFICATE, CLIENT_KEY = "client.pem", "client.key"


def server_flags() -> list[str]:
    """Return Triton's flags. Raises `FlyweightError` for a missing file, and for an open address without TLS."""
    directory, address = places.triton_tls(), places.triton_address()
    if directory is None:
        if places.triton_mutual_tls():
            raise FlyweightError(
                "FLYWEIGHT_TRITON_MUTUAL_TLS is 1 and FLYWEIGHT_TRITON_TLS is not set: name the directory of certificates"
            )
        if not _is_loopback(address):
            raise FlyweightError(
                f"FLYWEIGHT_TRITON_ADDRESS is {address!r}, which other machines can reach, and gRPC is not encrypted: set "
                f"FLYWEIGHT_TRITON_TLS to a directory of certificates (infra/make_certificates.py makes one), or stay on "
                f"127.0.0.1"
            )
        return []
    return [
        "--grpc-use-ssl-mutual=true" if places.triton_mutual_tls() else "--grpc-use-ssl=true",
        f"--grpc-server-cert={_file(directory, SERVER_CERTIFICATE)}",
        f"--grpc-server-key={_file(directory, SERVER_KEY)}",
        f"--grpc-root-cert={_file(directory, CA)}",
    ]


def client_options() -> dict[str, object]:
    """Return the keyword arguments of `tritonclient.grpc.InferenceServerClient`. Raises `FlyweightError`."""
    directory = places.triton_tls()
    if directory is None:
        return {}
    options: dict[str, object] = {"ssl": True, "root_certificates": str(_file(directory, CA))}
    if places.triton_mutual_tls():
        options["private_key"] = str(_file(directory, CLIENT_KEY))
        options["certificate_chain"] = str(_file(directory, CLIENT_CERTIFICATE))
    return options


def _file(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.is_file():
        raise FlyweightError(
            f"FLYWEIGHT_TRITON_TLS is {directory}, which has no {name}: copy it there, or make certificates with "
            f"infra/make_certificates.py"
        )
    return path


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
