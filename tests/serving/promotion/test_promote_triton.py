"""The promise on the real Triton: whoever dies, whatever is broken, one good version answers and not a request is lost."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving_toys import QUICK, Clients, Registry, Server, artifact, golden, images

from pipeline.errors import PromotionError
from pipeline.serving.promotion import ledger
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.ledger import STEPS, Ledger
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.reconcile import reconcile
from pipeline.serving.promotion.rollback import rollback
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.golden import save_golden
from pipeline.serving.triton.server import served_models
from pipeline.serving.triton.temporary import remove_models
from pipeline.settings.serving import Serving

pytestmark = pytest.mark.integration


@pytest.fixture
def own_server(triton_server, tmp_path, monkeypatch):
    """A Triton of this test's own, which it may kill."""
    (tmp_path / "triton_repo").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("FLYWEIGHT_TRITON_HOME", str((triton_server.home / "home" / "triton").resolve()))
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(tmp_path / "triton_repo"))
    server = Server(tmp_path)
    monkeypatch.setenv("FLYWEIGHT_TRITON_GRPC", server.url)
    server.start()
    yield server
    with contextlib.suppress(ProcessLookupError):
        server.kill()


class Promoter:
    """Promotes to a model of its own."""

    def __init__(self, tmp_path: Path, control: Client) -> None:
        self.model = f"proxy_{tmp_path.name}"[:40].lower()
        self.settings = Serving(model=self.model, max_batch_size=8, instances=1)
        self.registry = Registry(tmp_path / "registry.json")
        self.control = control

    def __call__(self, what, demanded=None, **settings):
        config = QUICK.model_copy(update={"load_timeout_s": 30.0, **settings})
        tags = {"verdict": "PROMOTE", "candidate": what.candidate}
        wanted = demanded or golden(what)
        return promote_artifact(self.settings, what, wanted, self.registry, tags, self.control, config)

    def reconcile(self):
        report = reconcile(
            self.settings, self.registry, self.control, QUICK.model_copy(update={"load_timeout_s": 30.0})
        )
        assert report.needs_a_person == []
        return report

    def consistent(self):
        """Ledger, disk, Triton and registry agree and nothing is left over; returns the version that serves."""
        change = Change(self.model, self.control, 30.0)
        version = change.serves()
        assert change.trouble(version) is None
        assert repository.served_versions(change.directory)[-1] == version
        assert self.registry.aliases(self.model)["champion"] == version
        assert set(repository.version_directories(change.directory)) <= change.ledger.has_served()
        assert [name for name in self.control.index() if name.startswith(f"{self.model}__")] == []
        return version


@pytest.fixture
def promote(triton, client, tmp_path, in_process):
    promoter = Promoter(tmp_path, client)
    yield promoter
    remove_models(client, promoter.model)


@pytest.fixture
def helper(promote, tmp_path):
    """A function: (artifact's factor, step) -> exit code of a promoter that was killed right after that step."""
    toys = Path(__file__).parents[2] / "toys"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(toys), str(toys.parents[1])])}
    process = subprocess.Popen(
        [sys.executable, str(toys / "promoter.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "ready\n"

    def run(factor, kill_at):
        order = {"directory": str(tmp_path), "factor": factor, "kill_at": kill_at}
        order |= {"model": promote.model, "registry": str(promote.registry.path)}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize(
    "steps", [(STEPS[1], STEPS[len(STEPS) // 2], STEPS[-1]), pytest.param(STEPS, marks=pytest.mark.extra)]
)
def test_a_promoter_killed_after_any_step_costs_no_request_and_is_repaired(promote, helper, tmp_path, steps):
    wares = [artifact(tmp_path, float(factor)) for factor in range(1, len(steps) + 2)]
    promote(wares[0])
    with Clients(promote.model, [ware.onnx for ware in wares]) as clients:
        for factor, step in enumerate(steps, start=2):
            assert helper(float(factor), step) == -9, step
            version = promote.reconcile().version
            assert promote.consistent() == version, step
            clients.versions.clear()
            clients.see(version)
    assert (clients.failed, clients.wrong) == ([], 0)
    assert Ledger(promote.model).serving_version() == len(steps) + 1  # the last one had gone live before it was killed
    assert promote(wares[-1]).reused


@pytest.mark.extra
def test_triton_killed_at_every_step_serves_one_of_both_after_a_restart(own_server, tmp_path, in_process, monkeypatch):
    with Client() as control:
        promote = Promoter(tmp_path, control)
        promote(artifact(tmp_path, 1.0))
        append = Ledger.append
        steps = [step for step in STEPS if step not in {ledger.BEGIN, ledger.STAGED, ledger.DONE}]
        for factor, kill_at in enumerate(steps, start=2):

            def deadly(self, step, kill_at=kill_at, **what):
                append(self, step, **what)
                if step == kill_at:
                    own_server.kill()

            before, ware = Ledger(promote.model).serving_version(), artifact(tmp_path, float(factor))
            monkeypatch.setattr(Ledger, "append", deadly)
            with contextlib.nullcontext() if kill_at == ledger.OBSERVED else pytest.raises(TritonError):
                promote(ware)
            monkeypatch.setattr(Ledger, "append", append)
            own_server.start()
            own_server.wait_ready(promote.model)
            answering = control.infer(promote.model, {"image": images(1)}).version
            assert answering in {before, promote.registry.versions}, kill_at
            version = promote.reconcile().version
            assert promote.consistent() == version, kill_at


BACKENDS = {
    "raises at load": (
        'config = json.loads(args["model_config"])',
        'raise RuntimeError("out of order")',
        "out of order",
    ),
    "ends its process": ("import gc\n", "import os; os._exit(3)\n", "the candidate cannot be served"),
    "answers NaN": ("answers = self.session.run(", "answers = _nan(self.session.run)(", "values that are not finite"),
    "has another shape": (
        "answers = self.session.run(",
        "answers = _cut(self.session.run)(",
        "the candidate cannot be served|shape",
    ),
    "is too slow": (
        "answers = self.session.run(",
        "answers = _slow(self.session.run)(",
        "too slow: .* probes took longer than",
    ),
}
FAULTS = """

def _nan(run):
    return lambda *a: [whole * np.float32("nan") for whole in run(*a)]


def _cut(run):
    return lambda *a: [np.ascontiguousarray(whole[:, :2]) for whole in run(*a)]


def _slow(run):
    import time

    return lambda *a: (time.sleep(0.2), run(*a))[1]
"""


def test_broken_candidates_are_refused_and_the_champions_requests_are_not_touched(
    promote, client, tmp_path, monkeypatch
):
    one, two = artifact(tmp_path, 1.0), artifact(tmp_path, 2.0)
    promote(one)
    source = repository.BACKEND.read_text()
    with Clients(promote.model, [one.onnx]) as clients:
        for name, (old, new, says) in BACKENDS.items():
            assert old in source
            broken = tmp_path / name / repository.BACKEND.name
            broken.parent.mkdir()
            broken.write_text(source.replace(old, new) + FAULTS)
            with monkeypatch.context() as patch:
                patch.setattr(repository, "BACKEND", broken)
                with pytest.raises(PromotionError, match=f"(?s)was refused, what served before serves on: .*({says})"):
                    promote(two, max_p99_ms=100.0, max_p99_ratio=1e6)
            assert client.ready(), "a balancer would turn the champion's clients away"
        half_copied(promote, two, monkeypatch)
        other = repository.Artifact(two.onnx, two.spec, "0" * 64, two.candidate)
        with pytest.raises(
            PromotionError, match=f"has SHA-256 {two.sha256}, but candidate 'int8' was recorded with 000"
        ):
            promote(other, golden(two))
        assert promote.consistent() == 1
    assert (clients.failed, clients.wrong, set(clients.versions)) == ([], 0, {1})
    assert promote(two).previous_version == 1


def half_copied(promote, what, monkeypatch):
    """The staged file loses its end after it was hashed: the running model notices."""
    rename = disk.rename

    def tear(source, target):
        for path in source.glob("*/model.onnx"):
            path.write_bytes(path.read_bytes()[:-50])
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename", tear)
        with pytest.raises(PromotionError, match=r"has SHA-256 .*, manifest.json says"):
            promote(what)


# The six traps of Triton's repository protocol (docs/decisions/promotion.md).


def test_trap_1_a_load_that_does_nothing_is_noticed_and_forced(promote, client, tmp_path):
    one, two = artifact(tmp_path, 1.0), artifact(tmp_path, 2.0)
    promote(one)
    place = Change(promote.model, client, 30.0).version_directory(1)
    stamps = {path: path.stat() for path in (*place.iterdir(), place)}
    (place / "model.onnx").write_bytes(two.onnx.read_bytes())
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "sha256": two.sha256}))
    for path, stamp in stamps.items():  # older than what Triton remembers, as behind a link that was turned
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns - 10**12))
    trouble = Change(promote.model, client, 30.0).trouble(1)
    assert f"the running model attests SHA-256 {one.sha256}, not {two.sha256}" in trouble
    golden_file = place / "golden.safetensors"
    save_golden(golden_file, golden(two))
    (finding,) = promote.reconcile().findings
    assert "attests SHA-256" in finding.what
    assert client.attested(promote.model) == (two.sha256, 1)


def test_traps_1_and_2_nothing_is_linked_and_nothing_is_staged_where_triton_looks(
    promote, client, tmp_path, monkeypatch
):
    promote(artifact(tmp_path, 1.0))
    seen, append = [], Ledger.append

    def look(self, step, **what):
        append(self, step, **what)
        root = Change(promote.model, client, 30.0).directory.parent
        seen.extend(path for path in root.rglob(f"{promote.model}*/**/*"))
        seen.extend(root.glob(f"*{promote.model}*"))

    monkeypatch.setattr(Ledger, "append", look)
    promote(artifact(tmp_path, 2.0))
    rollback(promote.model, client)
    assert {path.name for path in seen if path.parent.name == promote.model} == {"1", "2", "config.pbtxt", "labels.txt"}
    assert {path.name for path in seen if path.parent.name == "triton_repo"} == {
        promote.model,
        f"{promote.model}__cand",
    }
    assert not any(path.is_symlink() for path in seen)


@pytest.mark.parametrize("name", ["2.tmp", pytest.param("20260821142538123456", marks=pytest.mark.extra)])
def test_traps_2_and_3_a_name_that_would_harm_triton_is_never_loaded(promote, client, tmp_path, name):
    one = artifact(tmp_path, 1.0)
    promote(one)
    stray = Change(promote.model, client, 30.0).directory / name
    stray.mkdir()
    with pytest.raises(PromotionError, match=f"holds {name}, .*Move it away"):
        promote(artifact(tmp_path, 2.0))
    with pytest.raises(PromotionError, match="Move it away"):
        Change(promote.model, client, 30.0).load()
    assert client.attested(promote.model) == (one.sha256, 1)
    stray.rmdir()
    assert promote(artifact(tmp_path, 2.0)).version == 2


def test_trap_3_a_number_beyond_63_bits_ends_triton(own_server):
    """The control of the test above: this is why."""
    with Client(timeout=5.0) as control:
        (own_server.repository / "numbers" / "20260821142538123456").mkdir(parents=True)
        (own_server.repository / "numbers" / "config.pbtxt").write_text('backend: "python"\nmax_batch_size: 1\n')
        with pytest.raises(TritonError):
            control.load("numbers", 5.0)
        assert own_server.process.wait(30) != 0


@pytest.mark.extra
def test_trap_4_a_candidate_that_hangs_triton_is_said_and_a_restart_repairs_it(
    own_server, tmp_path, in_process, monkeypatch
):
    one, two = artifact(tmp_path, 1.0), artifact(tmp_path, 2.0)
    with Client(timeout=3.0) as control:
        promote = Promoter(tmp_path, control)
        promote(one)
        rename = disk.rename

        def forget(source, target):
            for path in source.glob("*/model.py"):
                path.unlink()
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(disk, "rename", forget)
            with pytest.raises(
                PromotionError, match=r"(?s)not loaded within promote.load_timeout_s = 3 s.*restart Triton"
            ):
                promote(two, load_timeout_s=3.0)
        with Clients(promote.model, [one.onnx], count=1) as clients:
            report = reconcile(
                promote.settings, promote.registry, control, QUICK.model_copy(update={"load_timeout_s": 1.0})
            )
            clients.see(1)
        assert (clients.failed, clients.wrong) == ([], 0)
        assert any("restart Triton" in finding.advice for finding in report.needs_a_person)
        own_server.kill()
        own_server.start()
        own_server.wait_ready(promote.model)
        assert promote.reconcile().version == 1
        assert promote(two).version == 2
        assert promote.consistent() == 2


def test_trap_5_a_refused_candidate_is_not_tried_again(promote, client, triton, tmp_path):
    promote(artifact(tmp_path, 1.0))
    two = artifact(tmp_path, 2.0)
    before = triton.log.read_text().count(f"{promote.model}__cand")
    with pytest.raises(PromotionError):
        promote(two, golden(two), max_p99_ms=1e-6)
    after = triton.log.read_text().count(f"{promote.model}__cand")
    assert after > before
    for _ in range(3):
        client.index()
    promote.reconcile()
    assert triton.log.read_text().count(f"{promote.model}__cand") == after


def test_trap_6_the_version_that_stays_is_not_loaded_again(promote, client, tmp_path):
    promote(artifact(tmp_path, 1.0))
    asked = client.served(promote.model)[1].answered
    client.infer(promote.model, {"image": images(1)})
    promote(artifact(tmp_path, 2.0))
    directory = Change(promote.model, client, 30.0).directory
    assert client.served(promote.model)[1].answered > asked  # a version that is loaded again counts from 0
    assert all((directory / version / "__pycache__").is_file() for version in ("1", "2"))


def test_a_read_only_repository_serves_and_says_that_it_cannot_be_promoted_into(promote, client, tmp_path, monkeypatch):
    """What a mount that is read-only raises; root may write anywhere else."""
    one = artifact(tmp_path, 1.0)
    promote(one)

    def closed(source, target):
        raise OSError(30, os.strerror(30), str(target))

    with Clients(promote.model, [one.onnx]) as clients:
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.rename", closed)
            with pytest.raises(PromotionError, match=r"Read-only file system. What serves serves on"):
                promote(artifact(tmp_path, 2.0))
        clients.see(1)
    assert (clients.failed, clients.wrong) == ([], 0)
    assert promote.consistent() == 1


def test_files_that_are_gone_come_back_from_the_registry_while_the_champion_answers(promote, client, tmp_path):
    one = artifact(tmp_path, 1.0)
    promote(one)
    with Clients(promote.model, [one.onnx]) as clients:
        shutil.rmtree(Change(promote.model, client, 30.0).version_directory(1))
        assert "are damaged" in promote.reconcile().findings[0].what
        clients.versions.clear()
        clients.see(1)
    assert (clients.failed, clients.wrong) == ([], 0)
    assert promote.consistent() == 1
    assert served_models(Change(promote.model, client, 30.0).directory.parent).count(promote.model) == 1
