"""The first GPU as a stand-in for nvidia-smi lists it."""

import pytest

from pipeline.machine.gpu import Gpu, Usage, find_gpu, usage


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Returns a function that makes nvidia-smi answer with this text and exit code."""

    def make(text, code=0):
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {code}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return make


def test_the_first_gpu_is_described(tool):
    tool("NVIDIA L4, 580.1, 8.9\\nNVIDIA H100, 580.1, 9.0\\n")
    assert find_gpu() == Gpu("NVIDIA L4", "580.1", "SM89")


@pytest.mark.parametrize(("text", "code"), [("No devices were found", 6), ("", 0)])
def test_a_driver_without_a_gpu_is_none(tool, text, code):
    tool(text, code)
    assert find_gpu() is None


def test_without_the_tool_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpu() is None


def test_each_gpu_says_how_busy_it_is(tool):
    tool("35, 1000, 80000\\n0, 1, 80000\\n")
    assert usage() == [Usage(35, 1000, 80000), Usage(0, 1, 80000)]


def test_a_driver_that_cannot_say_how_busy_has_no_usage(tool):
    tool("[N/A], 1000, 80000\\n")
    assert usage() == []
