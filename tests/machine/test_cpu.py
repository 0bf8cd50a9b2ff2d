"""What is read out of /proc/cpuinfo."""

import pytest

from pipeline.machine import cpu


@pytest.mark.parametrize(
    ("flags", "vnni", "amx", "kept"),
    [
        ("fpu avx2 avx512_vnni amx_int8 amx_tile", True, True, ("avx2", "avx512_vnni", "amx_tile", "amx_int8")),
        ("fpu avx2", False, False, ("avx2",)),
        ("avx2 avx_vnni", True, False, ("avx2", "avx_vnni")),
    ],
)
def test_integer_flags_are_found(tmp_path, flags, vnni, amx, kept):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: none\n")
    found = cpu.describe(file)
    assert (found.model, found.vnni, found.amx, found.flags) == ("Some CPU", vnni, amx, kept)


@pytest.mark.parametrize(
    ("machine", "vnni", "amx", "cut_off"),
    [
        ("x86_64", False, False, True),
        ("x86_64", True, False, False),
        ("x86_64", False, True, False),
        ("aarch64", False, False, False),
    ],
)
def test_only_an_x86_cpu_with_neither_vnni_nor_amx_cuts_sums_off(machine, vnni, amx, cut_off):
    assert cpu.Cpu(machine=machine, model="m", flags=(), vnni=vnni, amx=amx).sums_in_16_bits is cut_off


def test_without_cpuinfo_nothing_is_claimed(tmp_path):
    found = cpu.describe(tmp_path / "absent")
    assert (found.vnni, found.amx, found.flags) == (False, False, ())
    assert found.machine


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    assert cpu.cores() == 2
