"""Make a private certificate authority with a certificate for Triton's gRPC endpoint and one for its clients.

    python infra/make_certificates.py DIRECTORY NAME...

NAME is each name or address by which clients reach the server, such as ``triton.example.org`` or ``127.0.0.1``. The keys
are readable by their owner alone, and nothing is ever overwritten. The authority's key is not kept: to let in another
client, make a new directory.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 365

# Clients that hold certificates to RFC 5280, as Python does from 3.13 on, want to be told what the authority's key may do,
# and want every certificate to name its own key and the one that signed it.
_MAY_SIGN = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=True,
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def main() -> None:
    """Read the arguments and write the five files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    given = parser.parse_args()
    if given.directory.exists() and any(given.directory.iterdir()):
        sys.exit(f"{given.directory} is not empty: nothing is overwritten. Give another directory or move it away")
    given.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority_key, authority = _authority()
    _write(given.directory / "ca.pem", _pem(authority), 0o644)
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in given.names])
    for role, usage, extension in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH, alternatives),
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH, None),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(f"flyweight {role}", authority.subject, key.public_key())
        builder = builder.add_extension(_signed_by(authority_key), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
        _write(given.directory / f"{role}.pem", _pem(builder.sign(authority_key, hashes.SHA256())), 0o644)
        _write(given.directory / f"{role}.key", _key(key), 0o600)


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flyweight authority")])
    builder = _builder("flyweight authority", name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_MAY_SIGN, critical=True)
    return key, builder.sign(key, hashes.SHA256())


def _builder(common_name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed_by(authority: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main()
