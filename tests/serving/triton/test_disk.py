import os
import subprocess
import sys

import pytest

from pipeline.errors import PromotionError
from pipeline.serving.triton import disk


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(home):
    target = home / "triton_repo" / "config.pbtxt"
    target.write_text("old")
    disk.replace(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in (home / "triton_repo").iterdir()] == ["config.pbtxt"]
    assert list(disk.staging().iterdir()) == []


def test_a_directory_goes_and_comes_in_one_step(home):
    (home / "made").mkdir()
    disk.rename(home / "made", home / "triton_repo" / "model")
    assert (home / "triton_repo" / "model").is_dir()
    disk.remove(home / "triton_repo" / "model")
    assert list((home / "triton_repo").iterdir()) == []


@pytest.mark.integration
def test_a_limit_on_file_sizes_is_said_as_a_full_disk_is(home):
    """A real limit of the kernel, in a process of its own."""
    code = f"""
import resource
from pipeline.serving.triton import disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with disk.explained("proxy"):
    disk.replace(__import__("pathlib").Path({str(home / "triton_repo" / "big")!r}), "x" * 5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert "PromotionError: the disk has no room for what proxy needs" in done.stderr
    assert "File too large" in done.stderr
    assert not (home / "triton_repo" / "big").exists()


def test_other_errors_are_nobodys_disk():
    with pytest.raises(FileNotFoundError), disk.explained("proxy"):
        raise FileNotFoundError(2, "No such file or directory", "x")
    says = r"/x cannot be written: Permission denied.*needs write access to"
    with pytest.raises(PromotionError, match=says), disk.explained("proxy"):
        raise PermissionError(13, "Permission denied", "/x")


def test_one_change_at_a_time(home):
    with disk.lock("proxy"):
        with disk.lock("other"):
            pass
        with pytest.raises(BlockingIOError, match="another process is changing what proxy serves"), disk.lock("proxy"):
            pass
    with disk.lock("proxy"):
        assert (home / ".triton_repo" / "lock" / "proxy").exists()
