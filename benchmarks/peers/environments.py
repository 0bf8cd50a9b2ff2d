"""A virtual environment for each peer, and for NVIDIA's examples, made once from pinned versions and kept in Flyweight's cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.machine import places


class PeerError(RuntimeError):
    """A peer cannot be installed, or does not answer."""


ONNX_RUNTIME = "onnxruntime==1.31.1"
REQUIREMENTS = {
    "fastapi": ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", ONNX_RUNTIME),
    "bentoml": ("bentoml==1.4.39", ONNX_RUNTIME),
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0", ONNX_RUNTIME),  # its workers do not start on a newer uvloop
    "nvidia": ("tritonclient[grpc,http]==2.73.0",),
}
"""The same ONNX Runtime as Flyweight's. What these need in turn is whatever the resolver finds; `installed` says what."""


def environment(peer: str) -> Path:
    """Return the environment of `peer`, made if it is not there. Raises `PeerError` where it cannot be installed."""
    wanted = REQUIREMENTS[peer]
    digest = hashlib.sha256(" ".join((sys.version, *wanted)).encode()).hexdigest()[:10]
    directory = places.cache() / "peers" / f"{peer}-{digest}"
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        print(f"Installing {', '.join(wanted)} into {directory}", file=sys.stderr, flush=True)
        run([sys.executable, "-m", "venv", *(["--without-pip"] if _uv() else []), str(directory)])
        run([*_pip(directory, "install"), "--quiet", *wanted])
        (directory / "complete").touch()
    return directory


def installed(directory: Path) -> list[str]:
    """Return ``name==version`` of all that is installed there."""
    return run(_pip(directory, "freeze")).split()


def run(line: list[str]) -> str:
    """Run a command and return what it prints. Raises `PeerError` with its last words where it fails."""
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{' '.join(line)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _pip(directory: Path, command: str) -> list[str]:
    """Return the command line that does `command` in an environment."""
    python, uv = str(directory / "bin" / "python"), _uv()
    return [uv, "pip", command, "--python", python] if uv else [python, "-m", "pip", command]


def _uv() -> str | None:
    return shutil.which("uv", path=f"{Path(sys.prefix) / 'bin'}:{Path.home() / '.local' / 'bin'}") or shutil.which("uv")
