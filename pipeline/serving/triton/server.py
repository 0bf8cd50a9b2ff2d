"""A real Triton server without Docker: where it comes from and how it is started.

The `nvidia-pytriton` wheel carries the `tritonserver` binary, its Python backend and one stub for each Python version.
`install()` unpacks it into a directory of its own; `command()` says how to start it. Run as a program, this file becomes
the server: ``python -m pipeline.serving.triton.server REPOSITORY GRPC_PORT HTTP_PORT METRICS_PORT``. Whoever supervises
that can start it again after a crash, and what has been promoted meanwhile is served.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from pipeline.errors import FlyweightError
from pipeline.machine import places
from pipeline.serving.triton import tls

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
MIN_GLIBC = (2, 35)
MACHINES = ("x86_64", "aarch64")
TEMPORARY = ("__cand", "__eval_")
"""What the names of models that are only looked at contain; a restart never serves them."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
PING_MS = 10_000
"""How often a client may ask whether the server is still there, in milliseconds."""
CACHE_BYTES = 64 * 2**20
"""What the models with ``serving.response_cache`` share."""
RESOURCE = "flyweight"
"""What the rate limiter calls the units of ``serving.units``."""
CONTROL_KEY = "flyweight-control"
"""Name of the key that opens model control; on the wire Triton puts ``triton-grpc-protocol-`` before it."""


def install() -> Path:
    """Put Triton into `places.triton()` unless it is there, and return the directory. Raises `FlyweightError`."""
    check_platform()
    directory = places.triton()
    if not _server(directory).is_file():
        _unpack(directory)
    binary = _server(directory)
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    _assemble_backend(directory)
    _link_libpython(directory)
    return directory


def command(repository: Path, *, grpc_port: int, http_port: int, metrics_port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment that serve `repository` on loopback.

    Models are loaded on request alone; at start those that `served_models` finds, so that a restart serves the champion.
    Control over gRPC takes `control_key()`; over HTTP nobody holds the key. Only gRPC can leave loopback, and encrypted
    alone (`tls`). Raises `FlyweightError` where that cannot be done.
    """
    triton = places.triton()
    units = places.triton_units()
    guarded = "model-repository,logging,trace"
    line = [
        str(_server(triton)),
        f"--model-repository={repository}",
        f"--backend-directory={_backends(triton)}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--strict-readiness=false",  # else one candidate that fails to load takes the server out of every balancer
        "--exit-on-error=false",
        "--exit-timeout-secs=5",
        f"--grpc-address={places.triton_address()}",
        f"--grpc-port={grpc_port}",
        *tls.server_flags(),
        f"--grpc-http2-min-recv-ping-interval-without-data={PING_MS}",
        "--grpc-infer-allocation-pool-size=128",  # as many requests in flight need no allocation
        "--http-address=127.0.0.1",
        f"--http-port={http_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics_port}",
        "--allow-gpu-metrics=false",
        f"--cache-directory={triton / 'pytriton' / 'tritonserver' / 'caches'}",
        f"--cache-config=local,size={CACHE_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={_shared_memory_prefix(repository, grpc_port)}",
        *(["--rate-limit=execution_count", f"--rate-limit-resource={RESOURCE}:{units}"] if units else []),
        f"--grpc-restricted-protocol={guarded}:{CONTROL_KEY}={control_key()}",
        f"--http-restricted-api={guarded}:{CONTROL_KEY}={secrets.token_hex(16)}",
        *(f"--load-model={model}" for model in served_models(repository)),
    ]
    # model.py looks there how many requests wait.
    return line, {**_environment(triton), "FLYWEIGHT_TRITON_METRICS_PORT": str(metrics_port)}


def main(repository: Path, *ports: str) -> None:
    """Become the server. What a killed one of this repository left in shared memory is removed first."""
    grpc, http, metrics = map(int, ports)
    for left in SHARED_MEMORY.glob(f"{_shared_memory_prefix(repository, grpc)}*"):
        left.unlink()
    line, environment = command(repository, grpc_port=grpc, http_port=http, metrics_port=metrics)
    os.execve(line[0], line, environment)  # noqa: S606


def served_models(repository: Path) -> list[str]:
    """Return the names of the models in `repository` that a server loads when it starts."""
    found = (path.parent.name for path in repository.glob("*/config.pbtxt"))
    return sorted(name for name in found if not any(mark in name for mark in TEMPORARY))


def control_key() -> str:
    """Return the secret that opens model control over gRPC; made on first use, readable by its owner alone."""
    path = places.home() / "triton.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".triton.key-", dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(name, path)  # whoever is first wins, and nobody reads half a key
        except FileExistsError:
            return path.read_text(encoding="ascii")
        finally:
            Path(name).unlink()
    return path.read_text(encoding="ascii")


def check_platform() -> None:
    """Raise `FlyweightError` where the wheel's binaries cannot run."""
    machine, (libc, version) = platform.machine(), platform.libc_ver()
    if platform.system() != "Linux" or machine not in MACHINES or libc != "glibc":
        raise FlyweightError(
            f"the local Triton server runs on Linux with glibc on {' or '.join(MACHINES)}; this is "
            f"{platform.system()} on {machine} with {libc or 'another C library'}. Serve with docker-compose.yml instead"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_GLIBC:
        wanted = ".".join(map(str, MIN_GLIBC))
        raise FlyweightError(
            f"the local Triton server needs glibc >= {wanted} and this system has {version}: "
            f"use Debian 12, Ubuntu 22.04 or newer, or serve with docker-compose.yml"
        )


def libpython_directory() -> Path:
    """Return the directory of the shared libpython that the Python backend's stub links to.

    Debian's own Python is linked statically, and its shared library is a package that may be missing: then the package
    is fetched and unpacked under `home`, which takes no root. Raises `FlyweightError` where there is none to be had.
    """
    name = f"libpython{_python()}.so.1.0"
    unpacked = places.home() / f"libpython{_python()}"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    library_directory = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    for directory in (library_directory, library_directory / multiarch, unpacked):
        if (directory / name).exists():
            return directory
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt and dpkg:
        places.home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=places.home()) as temporary:
            subprocess.run([apt, "download", f"libpython{_python()}"], cwd=temporary, check=False)
            for package in Path(temporary).glob("*.deb"):
                subprocess.run([dpkg, "-x", str(package), temporary], check=True)
            for library in Path(temporary).glob(f"usr/lib/*/{name}"):
                try:
                    library.parent.rename(unpacked)
                except OSError:
                    if not (unpacked / name).exists():
                        raise
                return unpacked  # ours, or that of another process which was first
    raise FlyweightError(
        f"Triton's Python backend needs {name}, which is neither in {library_directory} nor to be had from apt: "
        f"install it (Debian, Ubuntu: apt-get install libpython{_python()}), or use a Python built with --enable-shared"
    )


def _shared_memory_prefix(repository: Path, port: int) -> str:
    """Of this server alone, so that what it leaves behind when it is killed can be distinguished from what others use."""
    return f"flyweight_{hashlib.sha256(str(repository).encode()).hexdigest()[:8]}_{port}_"


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _server(triton: Path) -> Path:
    return triton / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def _backends(triton: Path) -> Path:
    # As deep below `triton` as the wheel's own: the stub finds its libraries by a path relative to itself.
    return triton / "pytriton" / "tritonserver" / f"backends-{_python()}"


def _unpack(directory: Path) -> None:
    """Install the wheel beside `directory` and rename it there, so that a killed install leaves nothing half done."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    uv = Path(sys.prefix) / "bin" / "uv"
    installer = (
        [str(uv), "pip", "install", "--quiet"] if uv.exists() else [sys.executable, "-m", "pip", "install", "-q"]
    )
    with tempfile.TemporaryDirectory(prefix=".triton-", dir=directory.parent) as temporary:
        target = Path(temporary) / "triton"
        done = subprocess.run(
            [*installer, "--no-deps", "--require-hashes", "--target", str(target), "-r", str(REQUIREMENTS)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"Triton could not be installed from {REQUIREMENTS}:\n{done.stderr.strip()}")
        if directory.exists():
            shutil.rmtree(directory)  # what an interrupted or foreign install left: it has no server
        target.rename(directory)


def _assemble_backend(triton: Path) -> None:
    """Lay out a backend directory for this Python: the wheel's library with the matching stub beside it."""
    server = triton / "pytriton" / "tritonserver"
    backends = _backends(triton)
    if backends.exists():
        return
    stubs = server / "python_backend_stubs"
    stub = stubs / _python() / "triton_python_backend_stub"
    if not stub.is_file():
        there = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise FlyweightError(
            f"Triton's Python backend has no stub for Python {_python()}; it has: {there}. "
            f"Make the virtual environment with Python 3.11, 3.12 or 3.13"
        )
    with tempfile.TemporaryDirectory(prefix=".backends-", dir=server) as temporary:
        made = Path(temporary) / backends.name
        shutil.copytree(server / "backends" / "python", made / "python")
        copied = Path(shutil.copy2(stub, made / "python"))
        copied.chmod(0o755)
        made.rename(backends)


def _link_libpython(triton: Path) -> None:
    """Put a link to this Python's libpython where the wheel has one of its own.

    The stub for Python 3.13 is linked to that file, and its RPATH comes before ``LD_LIBRARY_PATH``. It is an older 3.13,
    with which modules of a newer one's standard library do not load (``undefined symbol``).
    """
    major, minor = sys.version_info[:2]
    library = libpython_directory() / f"libpython{major}.{minor}.so.1.0"
    for own in list((triton / "nvidia_pytriton.libs").glob(f"libpython{major}-*.{minor}.so.1.0")):
        if own.is_symlink() and own.readlink() == library:
            continue
        with tempfile.TemporaryDirectory(prefix=".libpython-", dir=triton) as temporary:
            link = Path(temporary) / own.name
            link.symlink_to(library)
            link.replace(own)


def _environment(triton: Path) -> dict[str, str]:
    """Return this process's environment with what the server and its stubs need first on their paths."""
    libraries = [
        str(libpython_directory()),
        str(triton / "nvidia_pytriton.libs"),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(part for part in libraries if part),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
