"""Look at this machine and say what would go wrong, each with its fix: `flyweight doctor`. Changes nothing, takes seconds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.version import Version

from pipeline.errors import FlyweightError
from pipeline.export import tensorrt
from pipeline.machine import cpu, places, workspace
from pipeline.machine.gpu import find_gpu
from pipeline.services import services
from pipeline.services.airflow_settings import password_file

_GB = 1e9
_DISK_GB, _MEMORY_GB = 5, 3  # what a first demo writes; what the stack and a training on two processes take
_PYTHONS = ((3, 11), (3, 13))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """None where it only deserves a note."""
    found: str
    fix: str = ""


def checks() -> list[Check]:
    """Return what was found, in the order in which problems are best repaired."""
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _disk,
        _memory,
        _processor,
        _graphics,
        _tensorrt,
        _triton,
        _ports,
        _services,
        _secrets,
        _data,
        _reuse,
        _browser,
    )
    return [check for look in looks for check in look()]


def _python() -> Iterator[Check]:
    version = platform.python_version()
    ok = _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]
    yield Check(
        "Python", ok, f"{version} in {sys.prefix}", "make the environment with Python 3.11, 3.12 or 3.13: `make setup`"
    )


def _packages() -> Iterator[Check]:
    wrong = wrong_packages((workspace.SOURCE / "requirements.lock").read_text(encoding="utf-8"))
    found = (
        f"{len(wrong)} differ from requirements.lock: {', '.join(wrong[:5])}" if wrong else "as requirements.lock says"
    )
    yield Check("packages", not wrong, found, "make setup")


def wrong_packages(lock: str) -> list[str]:
    """Return a few words on every package that is not installed in the version that `lock` (its text) asks for here."""
    wrong = []
    for line in lock.splitlines():
        if not line or line[0] in "# ":
            continue
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        version = str(wanted.specifier).removeprefix("==")
        try:
            installed = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} {version} is missing")
            continue
        if Version(installed).public != version:  # a build's own label, as in 2.13.0+cpu, does not count
            wrong.append(f"{wanted.name} is {installed}, not {version}")
    return wrong


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(_existing(places.home())).free / _GB
    fix = f"free some space, or set FLYWEIGHT_HOME to a larger disk; a first demo writes up to {_DISK_GB} GB"
    yield Check("disk", free > _DISK_GB, f"{free:.0f} GB free under {places.home()}", fix)


def _memory() -> Iterator[Check]:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB available"
    fix = f"end what else runs: the stack and a training take about {_MEMORY_GB} GB"
    yield Check("memory", memory.available / _GB > _MEMORY_GB, found, fix)


def _processor() -> Iterator[Check]:
    found = cpu.describe()
    yield Check(
        "CPU",
        None if not found.vnni and found.machine == "x86_64" else True,
        f"{found.model}, {cpu.cores()} cores, {', '.join(found.flags) or 'no integer instructions that are known here'}",
        "none: without VNNI int8 is slower here than elsewhere, and the gate measures what it gives",
    )


def _graphics() -> Iterator[Check]:
    gpu = find_gpu()
    found = f"{gpu.name}, driver {gpu.driver}, {gpu.compute_capability}" if gpu else "none; training runs on the CPU"
    yield Check("GPU", True if gpu else None, found, "" if gpu else "none needed: every stage runs without")


def _tensorrt() -> Iterator[Check]:
    gpu = find_gpu()
    reasons = {builder: tensorrt.missing(builder, gpu) for builder in tensorrt.MODULES}
    ready = [builder for builder, reason in reasons.items() if reason is None]
    if ready:
        yield Check("TensorRT", True, f"{', '.join(ready)} can build engines here")
    else:
        found = "; ".join(reason for reason in reasons.values() if reason)
        yield Check("TensorRT", None, found, "make setup (x86_64 Linux); without, the stage build_tensorrt is skipped")


def _triton() -> Iterator[Check]:
    from pipeline.serving.triton import server

    try:
        server.check_platform()
    except FlyweightError as error:
        yield Check("Triton server", False, str(error), "serve with docker-compose.yml")
        return
    if not places.triton().is_dir():
        yield Check("Triton server", None, "not installed yet", "flyweight up triton")
        return
    line, environment = server.command(places.triton_repository(), grpc_port=1, http_port=2, metrics_port=3)
    try:
        done = subprocess.run(
            [line[0], "--help"], env=environment, capture_output=True, text=True, check=False, timeout=20
        )
        works, last = "Usage" in done.stdout + done.stderr, (done.stderr.splitlines() or ["it says nothing"])[-1]
    except OSError as error:
        works, last = False, str(error)
    fix = f"rm -r {places.triton()} && flyweight up triton"
    yield Check(
        "Triton server", works, f"the server in {places.triton()} {'runs' if works else f'does not run: {last}'}", fix
    )


def _ports() -> Iterator[Check]:
    for service in services.SERVICES.values():
        try:
            services.check_ports(service)
            numbers = ", ".join(str(places.port(name)) for name in service.ports)
            yield Check(f"{service.title} port", True, f"{numbers} free or ours")
        except FlyweightError as error:
            found, _, fix = str(error).partition(": ")
            yield Check(f"{service.title} port", False, found, fix)


def _services() -> Iterator[Check]:
    for name, state in zip(services.SERVICES, services.status(), strict=True):
        title = services.SERVICES[name].title
        if state.running:
            yield Check(title, state.healthy, state.detail, "flyweight down && flyweight up")
        else:
            yield Check(title, None, "not running", f"flyweight up {name}")


def _secrets() -> Iterator[Check]:
    airflow = places.home() / "airflow"
    files = [
        file
        for file in (password_file(airflow), airflow / "airflow.cfg", places.home() / "triton.key")
        if file.exists()
    ]
    open_ = [str(file) for file in files if stat.S_IMODE(file.stat().st_mode) & 0o077]
    found = f"others can read {', '.join(open_)}" if open_ else f"{len(files)} files, readable by their owner alone"
    yield Check("secrets", not open_, found, f"chmod 600 {' '.join(open_)}")


def _data() -> Iterator[Check]:
    parent = places.data("any").parent
    ready = sorted(file.parent.name for file in parent.glob("*/manifest.json"))
    found = f"prepared in {parent}: {', '.join(ready)}" if ready else f"nothing is prepared in {parent} yet"
    yield Check(
        "data", True if ready else None, found, "" if ready else "the stage prepare_data does it; or now: dvc repro"
    )


def _reuse() -> Iterator[Check]:
    given = os.environ.get("FLYWEIGHT_CODE_VERSION")
    found = "finished stages are reused where settings, inputs, sources and versions are the same"
    fixed = f"FLYWEIGHT_CODE_VERSION={given} stands for all sources of Flyweight: an edit of them runs nothing again"
    yield Check("reuse", None if given else True, fixed if given else found, "unset it while you edit" if given else "")


def _browser() -> Iterator[Check]:
    found = browser()
    fix = "" if found else "make browser; without, the browser test is skipped"
    yield Check("browser", True if found else None, found or "no chromium: only a test needs one", fix)


def browser() -> str | None:
    """Return the path of a chromium that playwright can drive, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
