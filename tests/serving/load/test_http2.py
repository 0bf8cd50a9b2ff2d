"""Against the reference implementation of gRPC, in this process."""

import ssl
import subprocess
import sys
from concurrent import futures

import grpc
import pytest

from pipeline.machine.workspace import SOURCE
from pipeline.serving.load.http2 import STATUS, Connection, prefixed

METHOD = "/test.Service/Reverse"


def _reverse(request: bytes, context: grpc.ServicerContext) -> bytes:
    if request == b"bad":
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not that")
    received.append(request)
    return request[::-1]


received: list[bytes] = []


@pytest.fixture(scope="module")
def server():
    handler = grpc.unary_unary_rpc_method_handler(_reverse)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Reverse": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def connection(server):
    received.clear()
    connection = Connection(server, METHOD, timeout=10)
    yield connection
    connection.close()


def run(connection, messages):
    """Return the status of each message's call, in order."""
    streams = [connection.call(prefixed(message)) for message in messages]
    connection.flush()
    ended = {}
    while len(ended) < len(streams):
        ended |= dict(connection.receive())
    return [STATUS[ended[stream]] for stream in streams]


def test_many_calls_at_once_all_arrive(connection):
    messages = [f"message {index}".encode() for index in range(200)]
    assert run(connection, messages) == ["OK"] * 200
    assert sorted(received) == sorted(messages)


def test_failures_come_with_their_status_among_successes(connection):
    assert run(connection, [b"one", b"bad", b"two"]) == ["OK", "INVALID_ARGUMENT", "OK"]
    assert set(received) == {b"one", b"two"}


@pytest.mark.parametrize("size", [16384 - 5, 65535, 200_000, 3_000_000])
def test_messages_beyond_frames_and_windows_arrive_whole(connection, size):
    messages = [bytes([index]) * size for index in range(3)]
    assert run(connection, messages) == ["OK"] * 3
    assert sorted(received) == messages


def test_an_unknown_method_says_so(server):
    connection = Connection(server, "/test.Service/Nothing", timeout=10)
    assert run(connection, [b""]) == ["UNIMPLEMENTED"]
    connection.close()


def test_a_server_that_goes_away_is_an_error():
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    connection = Connection(f"127.0.0.1:{port}", METHOD, timeout=10)
    assert run(connection, [b""]) == ["UNIMPLEMENTED"]
    server.stop(None)
    with pytest.raises(ConnectionError, match=r"the server (is going away|closed the connection)"):
        while True:
            connection.receive()
    connection.close()


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    """A server that wants a certificate of its clients, and the files for one."""
    folder = tmp_path_factory.mktemp("tls") / "made"
    subprocess.run([sys.executable, SOURCE / "infra" / "make_certificates.py", folder, "127.0.0.1"], check=True)
    ca, certificate, key = ((folder / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key"))
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(_reverse)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Reverse": handler})])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    files = {"root_certificates": "ca.pem", "certificate_chain": "client.pem", "private_key": "client.key"}
    yield f"127.0.0.1:{port}", {name: str(folder / file) for name, file in files.items()}
    server.stop(None)


@pytest.mark.parametrize("size", [1, 200_000])
def test_calls_over_mutual_tls_arrive(encrypted, size):
    address, files = encrypted
    received.clear()
    connection = Connection(address, METHOD, 10, files)
    messages = [bytes([index]) * size for index in range(50)]
    assert run(connection, messages) == ["OK"] * 50
    assert sorted(received) == messages
    connection.close()


def test_a_server_of_another_authority_is_refused(encrypted):
    import certifi

    address, files = encrypted
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        Connection(address, METHOD, 10, {**files, "root_certificates": certifi.where()})
