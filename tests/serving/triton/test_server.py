import os
import stat
import sys

import pytest

from pipeline.errors import FlyweightError
from pipeline.serving.triton import server


def test_the_key_is_made_once_and_is_private(home):
    key = server.control_key()
    assert server.control_key() == key
    assert len(key) == 64
    file = home / "home" / "triton.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["triton.key"]


def test_a_restart_serves_what_was_promoted_and_nothing_half_tried(home):
    repository = home / "triton_repo"
    for name in ("proxy", "other", "proxy__cand", "proxy__eval_int8"):
        (repository / name).mkdir()
        (repository / name / "config.pbtxt").touch()
    (repository / "empty").mkdir()
    assert server.served_models(repository) == ["other", "proxy"]


def test_the_server_listens_on_loopback_alone_and_guards_control(home):
    line, environment = server.command(home / "triton_repo", grpc_port=1, http_port=2, metrics_port=3)
    for kind in ("grpc", "http", "metrics"):
        assert f"--{kind}-address=127.0.0.1" in line
    assert "--model-control-mode=explicit" in line
    grpc, http = (next(a for a in line if a.startswith(f"--{kind}-restricted")) for kind in ("grpc", "http"))
    assert grpc.endswith(server.control_key())
    assert "model-repository" in http
    assert server.control_key() not in http  # nobody holds the key of HTTP
    assert environment["PATH"].split(os.pathsep)[0].endswith("bin")


def test_units_of_the_machine_turn_the_rate_limiter_on(home, monkeypatch):
    ports = {"grpc_port": 1, "http_port": 2, "metrics_port": 3}
    assert not any("rate-limit" in flag for flag in server.command(home, **ports)[0])
    monkeypatch.setenv("FLYWEIGHT_TRITON_UNITS", "3")
    line, _ = server.command(home, **ports)
    assert {"--rate-limit=execution_count", "--rate-limit-resource=flyweight:3"} <= set(line)


def test_becoming_the_server_removes_what_a_killed_one_left(home, monkeypatch):
    shared, repository = home / "shm", home / "triton_repo"
    shared.mkdir()
    monkeypatch.setattr(server, "SHARED_MEMORY", shared)
    ours = server._shared_memory_prefix(repository, 1)
    for name in (f"{ours}one", f"{ours}two", server._shared_memory_prefix(repository, 2), "triton_python_x"):
        (shared / name).touch()
    became = []
    monkeypatch.setattr(server.os, "execve", lambda *arguments: became.append(arguments))
    server.main(repository, "1", "2", "3")
    assert {path.name for path in shared.iterdir()} == {
        server._shared_memory_prefix(repository, 2),
        "triton_python_x",
    }
    (program, line, environment) = became[0]
    assert program == line[0]
    assert f"--backend-config=python,shm-region-prefix-name={ours}" in line
    assert "--grpc-port=1" in line
    assert "LD_LIBRARY_PATH" in environment


@pytest.mark.parametrize(
    ("patched", "value", "says"),
    [
        ("system", "Darwin", "this is Darwin on .*Serve with docker-compose.yml instead"),
        ("machine", "riscv64", "runs on Linux with glibc on x86_64 or aarch64; this is Linux on riscv64"),
        ("libc_ver", ("glibc", "2.31"), r"needs glibc >= 2\.35 and this system has 2\.31: use Debian 12"),
        ("libc_ver", ("", ""), "with another C library"),
    ],
)
def test_machines_that_cannot_run_it_are_told_why(monkeypatch, patched, value, says):
    monkeypatch.setattr(server.platform, patched, lambda: value)
    with pytest.raises(FlyweightError, match=says):
        server.check_platform()


def wheel(home):
    """An unpacked wheel with a stub for Python 3.8 alone."""
    triton = home / "home" / "triton" / "pytriton" / "tritonserver"
    for file in ("bin/tritonserver", "backends/python/libtriton_python.so", "python_backend_stubs/3.8/stub"):
        (triton / file).parent.mkdir(parents=True, exist_ok=True)
        (triton / file).touch()
    return triton


def test_a_python_without_a_stub_is_told_which_have_one(home):
    wheel(home)
    with pytest.raises(FlyweightError, match=r"no stub for Python .*; it has: 3\.8\. Make the virtual environment"):
        server.install()


def test_the_stub_is_put_beside_the_backend_and_the_server_made_executable(home):
    triton = wheel(home)
    stub = triton / "python_backend_stubs" / server._python() / "triton_python_backend_stub"
    stub.parent.mkdir()
    stub.touch()
    assert server.install() == server.install() == home / "home" / "triton"
    backend = triton / f"backends-{server._python()}" / "python"
    assert {path.name for path in backend.iterdir()} == {"libtriton_python.so", "triton_python_backend_stub"}
    assert os.access(triton / "bin" / "tritonserver", os.X_OK)


@pytest.fixture
def installable(home):
    """An unpacked wheel with a stub for this Python; returns the directory of the libraries that the wheel brings."""
    stub = wheel(home) / "python_backend_stubs" / server._python() / "triton_python_backend_stub"
    stub.parent.mkdir()
    stub.touch()
    libraries = home / "home" / "triton" / "nvidia_pytriton.libs"
    libraries.mkdir()
    return libraries


@pytest.mark.parametrize("before", ["the wheel's", "a link to nowhere", "a link to another"])
def test_the_stub_finds_the_libpython_of_this_python_and_not_the_wheels(installable, before):
    major, minor = sys.version_info[:2]
    others = [installable / f"libpython3-419a3a08.{minor + 1}.so.1.0", installable / "libz-1234.so.1.0"]
    own = installable / f"libpython{major}-419a3a08.{minor}.so.1.0"
    for library in others:
        library.write_text("the wheel's")
    if before == "the wheel's":
        own.write_text(before)
    else:
        own.symlink_to("/nowhere" if before == "a link to nowhere" else others[1])
    server.install()
    right = server.libpython_directory() / f"libpython{major}.{minor}.so.1.0"
    assert own.readlink() == right
    made = own.lstat().st_ino
    server.install()
    assert own.lstat().st_ino == made, "what is right already is left alone"
    assert [library.read_text() for library in others] == ["the wheel's"] * 2
    assert sorted(path.name for path in installable.parent.iterdir()) == ["nvidia_pytriton.libs", "pytriton"]


@pytest.fixture
def apt(home, monkeypatch):
    """A machine without the shared libpython, whose apt has it; returns a hook: a line that runs before it is unpacked."""
    tools = home / "tools"
    tools.mkdir()
    monkeypatch.setattr(server.sysconfig, "get_config_var", lambda name: str(home / "none"))
    monkeypatch.setattr(server.shutil, "which", lambda name: str(tools / name))
    name = f"libpython{server._python()}"

    def hook(line=":"):
        for tool, does in (
            ("apt-get", f"[ $2 = {name} ] && touch {name}.deb"),
            ("dpkg", f"{line}; mkdir -p $3/usr/lib/multiarch && echo apt >$3/usr/lib/multiarch/{name}.so.1.0"),
        ):
            (tools / tool).write_text(f"#!/bin/sh\n{does}\n", encoding="ascii")
            (tools / tool).chmod(0o755)

    hook()
    return hook


def test_a_missing_libpython_is_fetched_into_a_home_that_is_not_there_yet(home, apt):
    made = home / "home" / f"libpython{server._python()}"
    assert not made.parent.exists()
    assert server.libpython_directory() == made
    assert (made / f"{made.name}.so.1.0").read_text() == "apt\n"
    assert list(made.parent.iterdir()) == [made]


def test_a_libpython_that_another_process_fetched_meanwhile_is_taken(home, apt):
    made = home / "home" / f"libpython{server._python()}"
    apt(f"mkdir {made} && echo first >{made}/{made.name}.so.1.0")
    assert server.libpython_directory() == made
    assert (made / f"{made.name}.so.1.0").read_text() == "first\n"


def test_a_missing_libpython_is_named_with_its_package(home, monkeypatch):
    monkeypatch.setattr(server.sysconfig, "get_config_var", lambda name: str(home))
    monkeypatch.setattr(server.shutil, "which", lambda name: None)
    with pytest.raises(FlyweightError, match=r"needs libpython3\.\d+\.so\.1\.0.*apt-get install libpython3"):
        server.libpython_directory()


def test_the_wheel_is_pinned_by_hash():
    (requirement,) = [line for line in server.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert requirement.startswith("nvidia-pytriton==0.7.0 --hash=sha256:")
