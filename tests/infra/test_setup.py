"""`make setup`: which PyTorch is installed, and where wheels are looked for. A stand-in for uv says what it was asked."""

import re
import shutil
import subprocess

import pytest

from pipeline.machine.workspace import SOURCE

VERSION = re.search(r"^torch==(.*)$", (SOURCE / "requirements.lock").read_text(encoding="utf-8"), re.M)[1]
CPU, PLAIN = f"--no-deps torch=={VERSION}+cpu", f"--no-deps torch==={VERSION}"
FROM_ITS_INDEX = f"--no-deps --torch-backend=cpu torch=={VERSION}+cpu"
REST = ["-r requirements.lock", "--quiet --no-deps --no-build-isolation --editable ."]
UV = """#!/bin/sh
[ "$2" = show ] && {{ [ -n "{installed}" ] && echo "Version: {installed}"; exit; }}
shift 4
[ "$1" = --dry-run ] || {{ echo "$@" >>{asked}; exit; }}
case "$*" in
    *--torch-backend*) [ {reachable} = its-index ] ;;
    *) [ {reachable} = find-links ] ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    tools, venv, asked = tmp_path / "tools", tmp_path / "venv" / "bin", tmp_path / "asked"
    for directory in (tools, venv):
        directory.mkdir(parents=True)
    for tool in ("bash", "sed", "grep", "timeout"):
        (tools / tool).symlink_to(shutil.which(tool))

    def script(path, text):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run(reachable="nowhere", installed="", gpu=False, **environment):
        """Return the installations that uv was asked for, and what was said."""
        script(venv / "uv", UV.format(installed=installed, reachable=reachable, asked=asked))
        script(venv / "python", "#!/bin/sh\necho Python 3.13.5\n")
        if gpu:
            script(tools / "nvidia-smi", "#!/bin/sh\n")
        done = subprocess.run(
            [tools / "bash", "infra/setup.sh", venv.parent],
            cwd=SOURCE,
            env={"PATH": str(tools), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        assert done.returncode == (0 if asked.exists() else 2)
        return asked.read_text(encoding="utf-8").splitlines() if asked.exists() else [], done.stdout

    return run


@pytest.mark.parametrize(("reachable", "asked"), [("find-links", CPU), ("its-index", FROM_ITS_INDEX)])
@pytest.mark.parametrize("torch", ["auto", "cpu", ""])
def test_without_a_gpu_the_cpu_build_is_taken_where_it_can_be_had(setup, reachable, asked, torch):
    assert setup(reachable, TORCH=torch) == ([asked, *REST], "")


def test_else_the_plain_one_and_its_cost_is_said(setup):
    asked, said = setup("nowhere")
    assert asked == [PLAIN, *REST]
    assert "2.7 GB to download" in said
    assert "No nvidia-smi is here" in said


@pytest.mark.parametrize("wish", [{"gpu": True}, {"TORCH": "plain"}])
def test_a_gpu_or_a_wish_brings_the_plain_one(setup, wish):
    asked, said = setup("find-links", **wish)
    assert asked == [PLAIN, *REST]
    assert "2.7 GB to download" in said
    assert ("No nvidia-smi is here" in said) == ("TORCH" in wish)


@pytest.mark.parametrize("build", ["", "+cpu"])
def test_what_is_installed_stays(setup, build):
    assert setup("find-links", installed=VERSION + build) == (REST, "")


def test_another_version_does_not_stay(setup):
    assert setup("find-links", installed="2.0.0")[0] == [CPU, *REST]


def test_a_wish_that_cannot_be_met_ends_with_what_to_do(setup):
    asked, said = setup("nowhere", TORCH="cpu")
    assert asked == []
    assert f"torch=={VERSION}+cpu for Python 3.13.5 is neither where PIP_FIND_LINKS points nor" in said
    assert "or with TORCH=plain" in said


def test_another_word_is_refused(setup):
    assert setup("find-links", TORCH="tpu") == ([], "TORCH is 'tpu': it can be cpu, plain or auto.\n")


@pytest.mark.parametrize(
    ("pip", "uv"),
    [
        ("/missing", ""),
        ("/missing {here}  file://{here} https://example.org/wheels", "{here},{here},https://example.org/wheels"),
    ],
)
def test_pips_places_for_wheels_are_those_of_uv_where_they_exist(tmp_path, pip, uv):
    show = ["make", "--silent", "--eval", "show: ; @echo $$UV_FIND_LINKS", "show"]
    places = pip.format(here=tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "PIP_FIND_LINKS": places}
    done = subprocess.run(show, cwd=SOURCE, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == uv.format(here=tmp_path)
