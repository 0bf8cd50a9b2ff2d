"""A canary and a shadow on the real Triton: nobody's request fails, whatever the candidate does and whoever dies."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from serving_toys import QUICK, Clients, Registry, artifact, golden

from pipeline.errors import PromotionError
from pipeline.serving.promotion import ledger
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.ledger import Ledger
from pipeline.serving.promotion.promote import promote_artifact
from pipeline.serving.promotion.reconcile import reconcile
from pipeline.serving.promotion.relay import socket_path
from pipeline.serving.triton import repository
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.temporary import remove_models
from pipeline.settings.serving import Serving

pytestmark = pytest.mark.integration
TRY = QUICK.model_copy(
    update={
        "load_timeout_s": 30.0,
        "live_test": "canary",
        "live_share": 0.3,
        "live_requests": 20,
        "live_alpha": 0.05,
        "max_error_rate": 0.1,
        "live_max_latency_ratio": 1e6,
        "live_s": 60.0,
    }
)
FAULTS = {
    "raises": "raise RuntimeError('out of order')",
    "answers NaN": "return [whole * np.float32('nan') for whole in run(*a)]",
    "is slow": "time.sleep(0.5); return run(*a)",
    "ends its process": "os._exit(3)",
}


@pytest.fixture
def model(tmp_path):
    """A name of this test's own."""
    return f"live_{tmp_path.name}"[:40].lower()


@pytest.fixture
def client(triton, model):
    with Client() as client:
        yield client
        remove_models(client, model)


@pytest.fixture
def promote(client, model, tmp_path, in_process):
    registry = Registry(tmp_path / "registry.json")

    def run(what, config=TRY):
        settings = Serving(model=model, max_batch_size=8, instances=1)
        return promote_artifact(settings, what, golden(what), registry, {"verdict": "PROMOTE"}, client, config)

    run.registry = registry
    return run


def faulty(directory: Path, fault: str, flag: Path) -> Path:
    """model.py with a fault that begins when the file `flag` is there, so that all checks before it are passed."""
    source = repository.BACKEND.read_text()
    run = "self.session.run("
    assert source.count(run) == 3
    path = directory / fault / repository.BACKEND.name
    path.parent.mkdir()
    path.write_text(
        f"{source.replace(run, '_faulty(self.session.run)(')}\n\n"
        f"import os\nimport time\n\n\n"
        f"def _faulty(run):\n    def ran(*a):\n        if os.path.exists({str(flag)!r}):\n            {FAULTS[fault]}\n"
        f"        return run(*a)\n\n    return ran\n"
    )
    return path


def test_a_broken_canary_fails_nobodys_request_and_a_good_one_goes_live(promote, model, client, tmp_path, monkeypatch):
    one, two = artifact(tmp_path, 1.0), artifact(tmp_path, 2.0)
    promote(one, QUICK)
    flag, append = tmp_path / "now", Ledger.append

    def begin(self, step, **said):
        append(self, step, **said)
        if step == ledger.LIVE_TEST:
            flag.touch()

    with Clients(model, [one.onnx, two.onnx], count=3) as clients:
        for fault in FAULTS:
            flag.unlink(missing_ok=True)
            with monkeypatch.context() as patch:
                patch.setattr(repository, "BACKEND", faulty(tmp_path, fault, flag))
                patch.setattr(Ledger, "append", begin)
                with pytest.raises(PromotionError, match=r"was refused, .*: canary: \d+ failed \("):
                    promote(two, TRY.model_copy(update={"live_timeout_ms": 200.0}))
            assert Change(model, client, 30.0).serves() == 1
            assert [name for name in client.index() if name.startswith(f"{model}__")] == [], fault
        assert promote(two).previous_version == 1
    assert (clients.failed, clients.wrong) == ([], 0)
    ended = [entry for entry in Ledger(model).entries() if entry["step"] == ledger.LIVE_TESTED]
    assert [entry["verdict"] for entry in ended] == [*["broken"] * len(FAULTS), "passed"]


@pytest.mark.extra
def test_clients_of_a_canary_are_answered_by_it_and_those_of_a_shadow_are_not(promote, model, client, tmp_path):
    one = artifact(tmp_path, 1.0)
    promote(one, QUICK)
    for kind, factor in (("canary", 2.0), ("shadow", 3.0)):
        two = artifact(tmp_path, factor)
        with Clients(model, [one.onnx], count=3) as clients, pytest.raises(PromotionError, match="undecided"):
            promote(two, TRY.model_copy(update={"live_test": kind, "live_s": 2.0, "live_requests": 10**6}))
        tried = Ledger(model).entries()[-2]["tried"]
        assert clients.failed == []
        assert tried > 0
        # Allowed was the champion's answer alone, so what counts as wrong came from the candidate.
        assert (clients.wrong > 0) == (kind == "canary")
        assert clients.wrong <= tried + 2
        assert set(clients.versions) == {1}


@pytest.mark.extra
def test_a_promoter_killed_during_a_canary_leaves_the_champion_alone(promote, model, client, tmp_path):
    one = artifact(tmp_path, 1.0)
    promote(one, QUICK)
    toys = Path(__file__).parents[2] / "toys"
    command = (
        "import sys, json; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from pathlib import Path\n"
        "from serving_toys import Registry, OnnxRunner, artifact, golden\n"
        "from pipeline.settings.serving import Promote, Serving\n"
        "from pipeline.serving.promotion import preflight\n"
        "from pipeline.serving.promotion.promote import promote_artifact\n"
        "from pipeline.serving.triton.client import Client\n"
        "preflight.answers = lambda onnx, inputs, threads, timeout: OnnxRunner(onnx, threads)(inputs)\n"
        "home = Path(sys.argv[3]); what = artifact(home, 2.0); registry = Registry(home / 'registry.json')\n"
        "config = Promote.model_validate_json(sys.argv[4]); settings = Serving(model=sys.argv[5], max_batch_size=8, instances=1)\n"
        "with Client() as client:\n"
        "    promote_artifact(settings, what, golden(what), registry, {'verdict': 'PROMOTE'}, client, config)\n"
    )
    # Nothing may end it before it is killed, slow answers on a busy machine neither.
    patient = {"live_requests": 10**6, "live_timeout_ms": 20_000.0, "live_s": 600.0}
    config = TRY.model_copy(update=patient).model_dump_json()
    arguments = [sys.executable, "-c", command, str(toys), str(toys.parents[1]), str(tmp_path), config, model]
    said = tmp_path / "promoter.log"
    with Clients(model, [one.onnx, artifact(tmp_path, 2.0).onnx], count=3) as clients, said.open("wb") as log:
        # Not os.spawn*, which forks: threads of gRPC are at work here, and what they hold locked would stay so in the child.
        promoter = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 200
        while not tried(client, model):
            assert promoter.poll() is None, f"the promoter has ended by itself: {said.read_text()}"
            assert time.monotonic() < deadline, f"{len(clients.versions)} answers, {client.index()}, {said.read_text()}"
            time.sleep(0.05)
        promoter.kill()
        promoter.wait()
        assert socket_path(model).exists()
        time.sleep(0.5)
        alone = len(clients.versions)
        report = reconcile(Serving(model=model, max_batch_size=8, instances=1), promote.registry, client, QUICK)
        while len(clients.versions) < alone + 50:
            time.sleep(0.01)
    assert (clients.failed, clients.wrong) == ([], 0)
    assert (report.version, report.needs_a_person) == (1, [])
    assert not socket_path(model).exists()
    assert [name for name in client.index() if name.startswith(f"{model}__")] == []
    answer = client.infer(model, golden(one).inputs)
    assert np.array_equal(answer.outputs["logits"], golden(one).outputs["logits"])


def tried(client, model):
    """Whether a live request has come to the baseline."""
    if not client.ready(f"{model}__cand_base"):
        return False
    return any(count.answered for count in client.served(f"{model}__cand_base").values())
