"""The fingerprint covers what a result depends on, and nothing else."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import pipeline
from pipeline.graph import STAGES
from pipeline.machine import places, workspace
from pipeline.settings import parse
from pipeline.tracking import closure, fingerprint, packages
from pipeline.tracking.inputs import Input

PACKAGE = Path(pipeline.__file__).parent
TRAIN = STAGES["train"]
REUSABLE = [name for name, stage in STAGES.items() if stage.reusable]
LEARNING = {"train", "distill", "prune", "quantize"}


@pytest.fixture(autouse=True)
def _no_version(monkeypatch):
    monkeypatch.delenv("FLYWEIGHT_CODE_VERSION", raising=False)


def _inputs(stage, identity="abc"):
    return {name: Input(name, identity, None, None) for name in stage.inputs}


def _hash(overrides=None, identity="abc", stage=TRAIN):
    return fingerprint.fingerprint(stage, parse.load("demo", overrides), _inputs(stage, identity))


def _all(overrides=None):
    return {name: _hash(overrides, stage=STAGES[name]) for name in REUSABLE}


def _changed(before, overrides=None):
    after = _all(overrides)
    return {name for name in before if before[name] != after[name]}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package that may be edited: what fingerprints read."""
    shutil.copytree(PACKAGE, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "_tops", lambda top: _tops(top, tmp_path))
    return tmp_path / "pipeline"


def _tops(top, root, real=closure._tops):
    return ((root / top, root / top / "__init__.py"),) if top == "pipeline" else real(top)


def _edit(path, text="\n# a comment\n"):
    path.write_text(path.read_text() + text)


def test_the_same_facts_give_the_same_fingerprint():
    assert _hash() == _hash()


@pytest.mark.parametrize(
    "changed",
    [
        {"overrides": {"train.fit.epochs": 7}},
        {"overrides": {"seed": 3}},
        {"overrides": {"distributed.nproc": 1}},
        {"identity": "abd"},
        {"stage": STAGES["distill"]},
    ],
)
def test_what_the_result_depends_on_changes_it(changed):
    assert _hash(**changed) != _hash()


def test_a_setting_changes_the_stages_that_take_it_alone():
    assert _changed(_all(), {"budget.accuracy_drop": 0.5}) == {"evaluate"}


def test_an_edit_of_serving_runs_no_training_again(copy):
    before = _all()
    for path in (copy / "serving").rglob("*.py"):
        _edit(path)
    assert _changed(before) == {"evaluate"}  # which measures through the live server


def test_an_edit_of_what_is_neutral_runs_nothing_again(copy):
    before = _all()
    for name in fingerprint.NEUTRAL:
        path = copy.joinpath(*name.split(".")[1:])
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            _edit(file)
    for room in ("cli", "services", "tracking"):
        for file in (copy / room).rglob("*.py"):
            if "server" not in file.name:
                _edit(file)
    assert _changed(before) == set()


def test_neutral_is_short_and_there():
    assert len(fingerprint.NEUTRAL) <= 10
    for name in fingerprint.NEUTRAL:
        assert closure._locate(name), name


def test_a_line_in_a_loss_runs_the_stages_that_name_it(copy):
    before = _all()
    _edit(copy / "training" / "losses" / "kd.py", "\nX = 1\n")
    assert _changed(before) == {"distill", "prune", "quantize"}


def test_a_component_that_no_setting_names_does_not_count(copy):
    before = _all()
    _edit(copy / "compression" / "pruning" / "pruners" / "n_m.py")
    assert "prune" not in _changed(before)
    before = _all({"prune.pruner": {"name": "n_m"}})
    _edit(copy / "compression" / "pruning" / "pruners" / "n_m.py")
    assert "prune" in _changed(before, {"prune.pruner": {"name": "n_m"}})


def test_the_code_of_a_training_process_counts_although_it_is_named_by_strings(copy):
    before = _all()
    _edit(copy / "training" / "distributed" / "worker.py")
    assert _changed(before) >= LEARNING
    before = _all()
    _edit(copy / "training" / "job.py")
    assert _changed(before) >= LEARNING


def test_what_was_read_is_kept_for_the_next_process_and_read_anew_where_it_is_spoilt():
    before = _hash()
    closure._read.cache_clear()
    _hash()
    kept = list((places.cache() / "imports").iterdir())
    assert len(kept) > 20
    for text in ("{", "[]", '{"imported": 3}', '{"other": []}'):
        for file in kept:
            file.write_text(text)
        closure._read.cache_clear()
        assert _hash() == before


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    before = _hash()
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLYWEIGHT_CACHE", str(tmp_path / "file"))
    for remembered in (closure._read, packages._holders, packages._distributions):
        remembered.cache_clear()
    assert _hash() == before


def test_what_is_imported_by_a_name_made_at_run_time_counts():
    found = fingerprint.needs(TRAIN, parse.load("demo")).files
    assert "pipeline.training.distributed.strategies.ddp" in found
    assert "pipeline.serving.triton.backend.model" in fingerprint.needs(STAGES["evaluate"], parse.load("demo")).files


def test_every_module_that_the_sources_name_in_a_string_is_there():
    """A string that lost its module in a move would be missed without a word."""
    gone = []
    for path in PACKAGE.rglob("*.py"):
        found = closure._names(path)
        for name in (*found.quoted, *found.packages):
            if name.startswith("pipeline.") and closure._locate(name) is None:
                gone.append(f"{path.relative_to(PACKAGE)}: {name}")
    assert gone == []


def test_a_stage_counts_for_itself_alone(copy):
    before = _all()
    _edit(copy / "stages" / "train.py")
    assert _changed(before) == {"train"}


@pytest.fixture
def mine(tmp_path, monkeypatch, request):
    """A user's own package with a loss, and a neighbour file that it does not import."""
    folder = tmp_path / f"users_own_{abs(hash(request.node.name))}"  # Python finds a name once per process
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "losses": "from . import helper\nclass Focal: ...",
        "helper": "",
        "other": "",
    }.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_users_own_loss_and_what_it_imports_count(mine):
    overrides = {"distill.loss": {"name": f"{mine.name}.losses:Focal"}}
    before = _all(overrides)
    _edit(mine / "other.py")
    assert _changed(before, overrides) == set()
    _edit(mine / "losses.py")
    assert _changed(before, overrides) == {"distill"}
    before = _all(overrides)
    _edit(mine / "helper.py")
    assert _changed(before, overrides) == {"distill"}


def test_a_users_own_code_that_an_argument_names_counts_too(mine):
    overrides = {"distill.loss": {"name": "kd", "of": f"{mine.name}.losses:Focal"}}
    before = _all(overrides)
    _edit(mine / "losses.py")
    assert _changed(before, overrides) == {"distill"}


def test_the_lock_line_of_a_package_counts_for_the_stages_that_import_it(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    lock.write_text("torch==2.13.0\n    # via\n    #   flyweight\nhuey==3.5.4\n")
    monkeypatch.setattr(packages, "workspace", SimpleNamespace(root=lambda: tmp_path, SOURCE=tmp_path))
    before = _all()
    lock.write_text(lock.read_text().replace("huey==3.5.4", "huey==3.5.5"))
    assert _changed(before) == set()
    lock.write_text(lock.read_text().replace("torch==2.13.0", "torch==2.13.1"))
    assert _changed(before) == set(REUSABLE) - {"validate"}


def test_the_installed_version_counts(monkeypatch):
    before = _all()
    real = packages._installed
    monkeypatch.setattr(packages, "_installed", lambda name: "9.9" if name == "great-expectations" else real(name))
    assert _changed(before) == {"validate"}


def test_another_machine_measures_for_itself(monkeypatch):
    before = _all()
    with_latency = {"prune.pruner": {"name": "channel", "keep_latency": 0.5}}
    timed = _all(with_latency)
    here = fingerprint.machine()
    assert here["cpu"] and here["cores"] >= 1
    for other in ({**here, "cpu": "another"}, {**here, "cores": 999}, {**here, "gpu": "another"}):
        monkeypatch.setattr(fingerprint, "machine", lambda other=other: other)
        assert _changed(before) == {"quantize", "build_tensorrt", "evaluate"}
        assert _changed(timed, with_latency) == {"prune", "quantize", "build_tensorrt", "evaluate"}


def test_the_place_of_the_workspace_and_git_do_not_count(tmp_path, monkeypatch):
    """A workspace outside git has fingerprints, and the same ones."""
    before = _all()
    settings = parse.load("demo")
    monkeypatch.setattr(workspace, "root", lambda: tmp_path)
    after = {name: fingerprint.fingerprint(STAGES[name], settings, _inputs(STAGES[name])) for name in REUSABLE}
    assert before == after


def test_a_given_version_stands_for_the_package_and_not_for_the_users_code(mine, copy, monkeypatch):
    overrides = {"distill.loss": {"name": f"{mine.name}.losses:Focal"}}
    monkeypatch.setenv("FLYWEIGHT_CODE_VERSION", "image-1")
    before = _all(overrides)
    _edit(copy / "training" / "job.py")
    assert _changed(before, overrides) == set()
    _edit(mine / "losses.py")
    assert _changed(before, overrides) == {"distill"}
    monkeypatch.setenv("FLYWEIGHT_CODE_VERSION", "image-2")
    assert _changed(before, overrides) == set(REUSABLE)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "training/losses/kd.py",
            "distill, prune, quantize; then, by their inputs: export_onnx, build_tensorrt, evaluate",
        ),
        ("report/page.py", "nothing"),
    ],
)
def test_the_command_says_what_a_change_runs_again(file, said):
    done = CliRunner().invoke(fingerprint.main, ["--touch", str(PACKAGE / file)])
    assert done.output == f"{PACKAGE / file}: {said}\n"


def test_the_command_prints_what_a_stage_depends_on():
    done = CliRunner().invoke(fingerprint.main, ["validate"])
    assert done.output.startswith("validate: settings expectations; inputs data\n  machine: any\n")
    assert "  pipeline.stages.validate\n" in done.output
    assert "great-expectations (lock: great-expectations==" in done.output
