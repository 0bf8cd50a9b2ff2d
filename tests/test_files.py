import os
import signal
import subprocess
import sys
import threading

import pytest

from pipeline import files

HOLD = """
import sys, time
from pathlib import Path
from pipeline.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_file_is_known_by_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256(tmp_path / "file").startswith("ba7816bf8f01cfea")


def test_json_is_laid_out_for_people(tmp_path):
    assert files.write_json(tmp_path / "a.json", {"one": [1.5]}).read_text() == '{\n  "one": [\n    1.5\n  ]\n}\n'


def test_a_file_takes_the_place_of_another(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    files.move_over(tmp_path / "new", tmp_path / "old")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "new")]


def test_a_lock_that_another_process_holds_is_refused_with_the_reason(tmp_path, holder):
    with (
        pytest.raises(BlockingIOError, match=r"^it is being changed$"),
        files.lock(tmp_path / "lock", "it is being changed"),
    ):
        pass


def is_free(path):
    """Whether nobody holds the lock."""
    try:
        with files.lock(path, "no"):
            return True
    except BlockingIOError:
        return False


def test_a_lock_goes_with_the_process_that_is_killed(tmp_path, holder):
    assert not is_free(tmp_path / "lock")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with files.lock(tmp_path / "lock", "it is being changed"):
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")


def test_without_a_refusal_a_lock_is_waited_for(tmp_path, holder):
    taken = threading.Event()

    def take():
        with files.lock(tmp_path / "lock"):
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.3)
    holder.kill()
    assert taken.wait(30)
    thread.join()


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), files.lock(tmp_path / "deep" / "lock", "no"):
        assert not is_free(tmp_path / "deep" / "lock")
        raise KeyError
    assert is_free(tmp_path / "deep" / "lock")
