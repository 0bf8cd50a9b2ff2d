"""The docs say what is so: links resolve, settings and commands are there, quoted errors exist, examples run."""

import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from pipeline.graph import STAGES
from pipeline.settings.page import PAGE, render
from pipeline.settings.schema import fields

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(*parts):
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_inside_the_repository_resolves(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {found.name} has no heading #{anchor}"


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), {ROOT / "README.md"}
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text(encoding="utf-8"))
        waiting |= {(page.parent / link).resolve() for link in links} - reached
    assert {str(page.relative_to(ROOT)) for page in set(PAGES) - reached} == set()


@each_page
def test_paths_that_are_named_exist(page):
    """Words such as `pipeline/graph.py` that begin with a folder of ours."""
    if page.name == "CHANGELOG.md" or page.name == "bring-your-own.md":
        return
    named = re.findall(r"`((?:pipeline|infra|tests|dags|recipes|examples|docs)/[\w./-]+)`", page.read_text("utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_settings_md_is_current():
    current = PAGE.read_text(encoding="utf-8") == render()
    assert current, "docs/settings.md is not what the schema says: run `python -m pipeline.settings.page` and commit it"


def test_every_setting_is_on_the_page():
    page = text_of("docs", "settings.md")
    missing = [key for key, _ in fields() if f"| `{key}` |" not in page]
    assert missing == ["datasets"], "datasets has a table of its own"
    assert "`datasets.<name>.validation_images`" in page


def test_every_command_is_in_the_docs():
    from pipeline.cli.main import main

    page = text_of("docs", "commands.md")
    assert [name for name in main.commands if f"`flyweight {name}" not in page] == []
    assert set(STAGES) <= set(main.commands)


def test_every_command_that_the_docs_use_exists():
    from pipeline.cli.main import main

    for page in PAGES:
        for name in re.findall(r"(?:^|`)flyweight ([a-z][a-z_-]*)\b", page.read_text(encoding="utf-8"), re.M):
            assert name in main.commands, f"{page.name} uses `flyweight {name}`"


def test_every_make_target_that_the_docs_use_exists():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    for page in PAGES:
        for name in re.findall(r"(?:^|`)make ([a-z]+(?:-[a-z]+)*)\b", page.read_text(encoding="utf-8"), re.M):
            assert name in targets, f"{page.name} uses `make {name}`"


def test_every_variable_that_the_docs_name_is_read_somewhere():
    files = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "dags").glob("*.py"), ROOT / "docker-compose.yml"]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    ports = {f"FLYWEIGHT_{name.upper()}_PORT" for name in ("airflow", "mlflow", "triton_grpc")}
    for page in PAGES:
        for name in re.findall(r"\bFLYWEIGHT_[A-Z_]+[A-Z]\b", page.read_text(encoding="utf-8")):
            assert name in code or name in ports, f"{page.name} names {name}"


def test_errors_are_quoted_as_they_are_raised():
    """A `…` in a heading of the page stands for what differs; the rest must occur in the code."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    for heading in re.findall(r"^### (`.+`)$", text_of("docs", "troubleshooting.md"), re.M):
        for part in re.split("[…`]", heading):
            part = part.strip(" '?.,:")
            assert part in code, f"nothing says {part!r}"


def test_the_client_in_the_readme_is_the_example():
    block = re.search(r"^```python\n(.*?)^```", text_of("README.md"), re.M | re.S)[1]
    assert block == text_of("examples", "client.py")
    statements = [line for line in block.split('"""')[2].splitlines() if line and not line.startswith("import")]
    assert len(statements) <= 10


def test_exit_codes_are_the_same_everywhere():
    from pipeline import errors

    for code, page in ((2, "concepts.md"), (3, "concepts.md"), (2, "commands.md"), (3, "commands.md")):
        assert re.search(rf"\| {code} \|", text_of("docs", page))
        assert f"exit code {code}" in errors.__doc__


# Compression: each example holds, and each built-in method is there.

COMMANDS = re.findall(r"^    flyweight check (.+)$", text_of("docs", "compression.md"), re.M)


@pytest.mark.parametrize(
    "line",
    [line if number % 4 == 0 else pytest.param(line, marks=pytest.mark.extra) for number, line in enumerate(COMMANDS)],
)
def test_the_examples_of_compression_hold(line, monkeypatch):
    from click.testing import CliRunner

    from pipeline.cli.main import main
    from pipeline.export import executorch

    monkeypatch.setattr(executorch, "check_installed", lambda: None)  # the example of it says what to install
    done = CliRunner().invoke(main, ["check", *shlex.split(line)])
    assert (done.exit_code, done.exception) == (0, None)


def test_the_recipe_of_compression_holds():
    from pipeline.settings import parse, reader

    block, _ = re.findall(r"^```yaml\n(.*?)^```", text_of("docs", "compression.md"), re.M | re.S)
    settings = parse.load("demo", reader.read(block, "compression.md"))
    made = [pruner.build("pruners") for pruner in (settings.prune.pruner, *settings.prune.then)]
    assert [type(pruner).__name__ for pruner in made] == ["LowRank", "Channel"]


def test_every_method_of_compression_has_its_row():
    from pipeline.components import names

    page = text_of("docs", "compression.md")
    for kind in ("pruners", "quantizers"):
        assert [name for name in names(kind) if f"\n| `{name}` |" not in page] == []


# Bring your own: each example is run as a user's own module, by its path.

EXAMPLES = {
    re.match(r"# pipeline/.*?(\w+)/\w+\.py", block)[1].replace("architectures", "models"): block
    for block in re.findall(r"^```python\n(.*?)^```", text_of("docs", "bring-your-own.md"), re.M | re.S)
}


@pytest.fixture
def own(request, monkeypatch):
    """Component path of the example of the kind that the test names."""
    module = types.ModuleType(f"example_{request.param}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLES[request.param], module.__name__, "exec"), module.__dict__)
    return f"{module.__name__}:{module.COMPONENT.__name__}"


example = pytest.mark.parametrize("own", EXAMPLES, indirect=True)


def of(kind):
    return pytest.mark.parametrize("own", [kind], indirect=True)


def test_there_is_one_example_a_kind():
    from pipeline.components import KINDS

    assert sorted(EXAMPLES) == sorted(KINDS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_has_under_20_lines(kind):
    lines = [line for line in EXAMPLES[kind].splitlines() if line.strip() and not line.startswith("#")]
    code = [line for line in lines if not re.match(r"(import|from) ", line)]
    assert len(code) < 20


@of("losses")
def test_the_example_of_a_loss(own):
    import torch

    from pipeline import components
    from pipeline.errors import SettingsError

    loss = components.build("losses", own, {"gamma": 1})
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    value = loss(student, teacher, torch.tensor([0, 1, 2, 0, 1]))
    value.backward()
    assert value.shape == () and value > 0 and student.grad.abs().sum() > 0
    with pytest.raises(SettingsError, match="gamma is -1: Input should be greater than or equal to 0"):
        components.build("losses", own, {"gamma": -1})


def spec_of(architecture, **arguments):
    from pipeline.models.spec import Preprocessing, image_classifier

    labels = tuple("abcd")
    return image_classifier(architecture, arguments, (1, 8, 8), labels, Preprocessing(mean=(0.5,), std=(0.5,)))


@of("models")
def test_the_example_of_a_model(own):
    import torch

    from pipeline.models import checkpoint, surgery

    network = checkpoint.build(spec_of(own, width=4))
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert surgery.widths(network)["head"] == (8, 4)


@of("pruners")
def test_the_example_of_a_pruner(own, tmp_path):
    import torch

    from pipeline import components
    from pipeline.models import checkpoint

    spec = spec_of("resnet", width=8, blocks=[1, 1])
    network = checkpoint.build(spec).eval()
    before = sum(parameter.numel() for parameter in network.parameters())
    rounds = components.build("pruners", own, {"keep": 0.5}).rounds(2)
    assert len(rounds) == 2
    for pruner in rounds:
        step = pruner(spec, network, iter(()))
        spec = spec.model_copy(update={"pruning": (*spec.pruning, step)})
    assert sum(parameter.numel() for parameter in network.parameters()) < before / 2
    checkpoint.save(tmp_path, spec, network)
    _, rebuilt = checkpoint.load(tmp_path)
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(rebuilt(image), network(image))


@of("quantizers")
def test_the_example_of_a_quantizer(own, tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from pipeline import components

    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    found = components.build("quantizers", own, {})(tmp_path / "a.onnx", None, tmp_path / "b.onnx", "cpu")
    assert found["bytes_saved"] > 0
    assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node}


@of("datasets")
def test_the_example_of_a_data_set(own, tmp_path, monkeypatch):
    from pipeline import components
    from pipeline.errors import DataError

    monkeypatch.setenv("HOME", str(tmp_path))
    data = components.build("datasets", own, {})
    with pytest.raises(DataError, match=r"mine\.npz is not there: put your images into it"):
        data.fetch(tmp_path)
    images, labels = np.zeros((6, *data.image_shape), np.uint8), np.array([0, 1] * 3)
    np.savez(tmp_path / "mine.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    (tmp_path / "raw").mkdir()
    data.fetch(tmp_path / "raw")
    assert {split: found[0].shape for split, found in data.read(tmp_path / "raw").items()} == {
        "train": (6, 1, 28, 28),
        "test": (6, 1, 28, 28),
    }


@example
def test_an_example_is_formatted_like_our_code(own, tmp_path):
    """So that what is copied from the docs passes the linter."""
    import subprocess

    kind = own.partition(":")[0].removeprefix("example_")
    (tmp_path / "example.py").write_text(EXAMPLES[kind])
    ruff = [str(Path(sys.executable).with_name("ruff")), "check", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*ruff, "--ignore", "D,TID253,INP", str(tmp_path / "example.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
