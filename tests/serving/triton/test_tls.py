"""Which certificates server and client are told of; that they work is in test_model_server.py."""

import ssl
import stat
import subprocess
import sys

import pytest

from pipeline.errors import FlyweightError
from pipeline.machine.workspace import SOURCE
from pipeline.serving.triton import server, tls


def certificates(directory, *names):
    script = SOURCE / "infra" / "make_certificates.py"
    return subprocess.run([sys.executable, script, directory, *names], capture_output=True, text=True, check=False)


def test_without_certificates_gRPC_is_plain_and_on_loopback(home):
    assert tls.server_flags() == []
    assert tls.client_options() == {}


def test_a_directory_of_certificates_turns_encryption_on(home, monkeypatch):
    assert certificates(home / "tls", "127.0.0.1", "triton.example.org").returncode == 0
    monkeypatch.setenv("FLYWEIGHT_TRITON_TLS", str(home / "tls"))
    assert tls.server_flags() == [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={home}/tls/server.pem",
        f"--grpc-server-key={home}/tls/server.key",
        f"--grpc-root-cert={home}/tls/ca.pem",
    ]
    assert tls.client_options() == {"ssl": True, "root_certificates": f"{home}/tls/ca.pem"}
    monkeypatch.setenv("FLYWEIGHT_TRITON_MUTUAL_TLS", "1")
    assert tls.server_flags()[0] == "--grpc-use-ssl-mutual=true"
    assert tls.client_options()["private_key"] == f"{home}/tls/client.key"
    line, _ = server.command(home, grpc_port=1, http_port=2, metrics_port=3)
    assert "--grpc-use-ssl-mutual=true" in line


def test_keys_are_private_and_nothing_is_overwritten(home):
    certificates(home / "tls", "localhost")
    for key in ("server.key", "client.key"):
        assert stat.S_IMODE((home / "tls" / key).stat().st_mode) == 0o600
    before = (home / "tls" / "server.pem").read_bytes()
    again = certificates(home / "tls", "localhost")
    assert again.returncode == 1
    assert "is not empty: nothing is overwritten" in again.stderr
    assert (home / "tls" / "server.pem").read_bytes() == before
    assert sorted(path.name for path in (home / "tls").iterdir()) == [
        "ca.pem",
        "client.key",
        "client.pem",
        "server.key",
        "server.pem",
    ]


def shake_hands(client, server):
    """Let a client and a server talk in memory until both are satisfied. What a certificate lacks is raised."""
    ways = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    sides = [
        client.wrap_bio(ways[0], ways[1], server_hostname="triton.example.org"),
        server.wrap_bio(ways[1], ways[0], server_side=True),
    ]
    for _ in range(3):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return [side.getpeercert()["subject"][0][0][1] for side in sides]


def test_both_sides_hold_under_strict_verification(home):
    """Python verifies like this from 3.13 on."""
    assert certificates(home / "tls", "triton.example.org").returncode == 0
    contexts = []
    for role, purpose in (("client", ssl.Purpose.SERVER_AUTH), ("server", ssl.Purpose.CLIENT_AUTH)):
        context = ssl.create_default_context(purpose, cafile=home / "tls" / "ca.pem")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(home / "tls" / f"{role}.pem", home / "tls" / f"{role}.key")
        contexts.append(context)
    assert shake_hands(*contexts) == ["flyweight server", "flyweight client"]


def test_what_is_missing_is_named(home, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_TRITON_MUTUAL_TLS", "1")
    with pytest.raises(FlyweightError, match="FLYWEIGHT_TRITON_MUTUAL_TLS is 1 and FLYWEIGHT_TRITON_TLS is not set"):
        tls.server_flags()
    monkeypatch.setenv("FLYWEIGHT_TRITON_TLS", str(home))
    with pytest.raises(FlyweightError, match=r"which has no server\.pem: copy it there, or make certificates"):
        tls.server_flags()


def test_other_machines_are_let_in_by_encryption_alone(home, monkeypatch):
    for address in ("0.0.0.0", "192.0.2.7", "::", "triton"):
        monkeypatch.setenv("FLYWEIGHT_TRITON_ADDRESS", address)
        with pytest.raises(FlyweightError, match=r"which other machines can reach, and gRPC is not encrypted"):
            server.command(home, grpc_port=1, http_port=2, metrics_port=3)
    for address in ("127.0.0.2", "::1", "localhost"):
        monkeypatch.setenv("FLYWEIGHT_TRITON_ADDRESS", address)
        assert tls.server_flags() == []
    certificates(home / "tls", "triton")
    monkeypatch.setenv("FLYWEIGHT_TRITON_TLS", str(home / "tls"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_ADDRESS", "0.0.0.0")
    line, _ = server.command(home, grpc_port=1, http_port=2, metrics_port=3)
    assert "--grpc-address=0.0.0.0" in line
    assert "--http-address=127.0.0.1" in line  # Triton has no TLS for HTTP
