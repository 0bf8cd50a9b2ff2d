"""The graph is whole: every stage stands after what it needs and has a function of just the shape that the graph says."""

import ast
import inspect
from pathlib import Path

import pytest

from pipeline import graph
from pipeline.graph import STAGES
from pipeline.services.airflow_settings import POOLS
from pipeline.settings.base import Section
from pipeline.settings.schema import Settings

FOLDER = Path(__file__).resolve().parents[1] / "pipeline" / "stages"
each_stage = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)


def function(stage):
    """The definition of the stage's function, read but not imported: some stages import for seconds."""
    tree = ast.parse((FOLDER / f"{stage.name}.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == stage.name]
    assert len(found) == 1, f"pipeline/stages/{stage.name}.py must hold one function {stage.name}"
    return found[0]


def test_the_order_is_one_in_which_they_can_run():
    names = list(STAGES)
    for stage in STAGES.values():
        for other in stage.upstream:
            assert other in names[: names.index(stage.name)], f"{stage.name} stands before {other}"


def test_the_groups_follow_one_another():
    """So that Airflow's graph has one arrow from each to the next."""
    groups = [stage.group for stage in STAGES.values()]
    assert list(dict.fromkeys(groups)) == list(graph.GROUPS)
    assert groups == sorted(groups, key=list(graph.GROUPS).index)


def test_just_before_leaves_out_what_others_imply():
    assert graph.before("prepare_data") == ()
    assert graph.before("train") == ("validate",)
    assert graph.before("evaluate") == ("build_tensorrt",)
    assert graph.before("promote") == ("evaluate",)


def test_it_is_the_order_of_the_docs():
    assert list(STAGES) == [
        "prepare_data", "validate", "train", "distill", "prune", "quantize", "export_onnx", "build_tensorrt",
        "evaluate", "promote", "verify_served",
    ]  # fmt: skip


def test_the_data_is_validated_before_anything_is_made_of_it():
    needs = {name: set(stage.upstream) for name, stage in STAGES.items()}
    for name in STAGES:
        reached, waiting = set(), {name}
        while waiting:
            waiting = set().union(*(needs[one] for one in waiting)) - reached
            reached |= waiting
        assert name in ("prepare_data", "validate") or "validate" in reached, name


@each_stage
def test_upstream_has_every_input_once(stage):
    assert set(stage.upstream) == set(stage.inputs.values()) | set(stage.after)
    assert len(stage.upstream) == len(set(stage.upstream))


@each_stage
def test_its_settings_exist(stage):
    section, *shared = stage.settings
    assert issubclass(Settings.model_fields[section].annotation, Section)
    assert all(name in Settings.model_fields for name in shared)


def test_every_setting_is_covered_by_a_fingerprint():
    """A setting that no stage takes could change without anything being made anew."""
    covered = {name for stage in STAGES.values() for name in stage.settings}
    assert set(Settings.model_fields) - covered == {"datasets"}, "datasets is covered by the data's own hash"


@each_stage
def test_it_has_help_a_pool_and_a_limit(stage):
    assert stage.help.endswith(".")
    assert stage.pool == "default_pool" or stage.pool in POOLS
    assert stage.retries >= 0 and stage.timeout_minutes > 0


def test_every_file_is_a_stage():
    files = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")}
    assert files == set(STAGES)


@each_stage
def test_its_function_takes_just_what_the_graph_says(stage):
    definition = function(stage)
    arguments = definition.args
    assert [argument.arg for argument in arguments.args] == ["config"]
    assert not arguments.posonlyargs and not arguments.vararg and not arguments.kwarg
    required = {
        arg.arg for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default
    }
    assert required - {"scratch", "registry"} == {*stage.inputs, *stage.shared, "out"}
    defaults = [ast.unparse(default) for default in arguments.kw_defaults if default]
    assert set(defaults) <= {"None"}, "the settings hold the defaults; only what a test puts in may be left out"


@each_stage
def test_its_function_is_annotated_as_a_stage(stage):
    definition = function(stage)
    annotations = {argument.arg: ast.unparse(argument.annotation) for argument in definition.args.kwonlyargs}
    directories = {*stage.inputs, "out", "scratch"} & set(annotations)
    assert {annotations[name] for name in directories} == {"Path"}
    section = Settings.model_fields[stage.settings[0]].annotation
    assert ast.unparse(definition.args.args[0].annotation).split(".")[-1] == section.__name__
    assert ast.unparse(definition.returns) == "Metrics"
    assert ast.get_docstring(definition)


@pytest.mark.parametrize("banned", ["mlflow", "airflow", "pipeline.tracking.stage", "pipeline.tracking.rest"])
@each_stage
def test_it_knows_neither_mlflow_nor_airflow(stage, banned):
    tree = ast.parse((FOLDER / f"{stage.name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            imported = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        assert not [name for name in imported if name == banned or name.startswith(f"{banned}.")]


def test_the_graph_imports_nothing_of_ours():
    source = inspect.getsource(graph)
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name and name.startswith("pipeline")]


def test_a_stage_cannot_be_changed():
    with pytest.raises(AttributeError):
        STAGES["train"].retries = 9
